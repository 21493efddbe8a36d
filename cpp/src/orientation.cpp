// Which way up an image is: EXIF's tag, else XMP's, and the eight ways to turn it.
#include <algorithm>

#include "error.hpp"
#include "image.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr uint32_t ORIENTATION_TAG = 0x112;
constexpr size_t ENTRY_BYTES = 12;
constexpr uint32_t SHORT_TYPE = 3, LONG_TYPE = 4;

// Numbers in a TIFF structure of either byte order; false where it ends.
class Tiff {
public:
    explicit Tiff(std::string_view bytes) : bytes_(bytes), little_(starts_with(bytes, "II")) {}

    bool read(uint64_t offset, int count, uint32_t& value) const {
        if (offset + static_cast<uint64_t>(count) > bytes_.size()) return false;
        value = 0;
        for (int i = 0; i < count; ++i) {
            const auto byte =
                static_cast<unsigned char>(bytes_[offset + static_cast<uint64_t>(little_ ? count - 1 - i : i)]);
            value = value << 8 | byte;
        }
        return true;
    }

private:
    std::string_view bytes_;
    bool little_;
};

// Return the tag's value in the first directory, 0 where there is none.
uint32_t exif_orientation(std::string_view exif) {
    while (starts_with(exif, std::string_view("Exif\0\0", 6))) exif.remove_prefix(6);
    if (exif.empty()) return 0;
    const bool is_tiff =
        starts_with(exif, std::string_view("II*\0", 4)) || starts_with(exif, std::string_view("MM\0*", 4));
    if (!is_tiff || exif.size() < 8)
        throw Error(PTP_ERROR_IMAGE, "the image's EXIF data cannot be read").got("not a TIFF structure");
    const Tiff tiff(exif);
    uint32_t start = 0, count = 0, found = 0;
    if (!tiff.read(4, 4, start) || !tiff.read(start, 2, count)) return 0;
    for (uint32_t i = 0; i < count; ++i) {
        const uint64_t entry = uint64_t{start} + 2 + i * ENTRY_BYTES;
        uint32_t tag = 0, type = 0, length = 0, value = 0;
        if (!tiff.read(entry, 2, tag) || !tiff.read(entry + 2, 2, type) || !tiff.read(entry + 4, 4, length)) break;
        if (tag != ORIENTATION_TAG || length != 1 || (type != SHORT_TYPE && type != LONG_TYPE)) continue;
        if (tiff.read(entry + 8, type == SHORT_TYPE ? 2 : 4, value)) found = value;
    }
    return found;
}

// Return the digit after `tiff:Orientation="` or `tiff:Orientation>`, 0 where there is none.
uint32_t xmp_orientation(std::string_view xmp) {
    constexpr std::string_view TAG = "tiff:Orientation";
    for (size_t place = xmp.find(TAG); place != std::string_view::npos; place = xmp.find(TAG, place + 1)) {
        std::string_view rest = xmp.substr(place + TAG.size());
        const size_t opening = starts_with(rest, "=\"") ? 2 : starts_with(rest, ">") ? 1 : 0;
        rest.remove_prefix(opening);
        if (opening && !rest.empty() && rest[0] >= '0' && rest[0] <= '9') return static_cast<uint32_t>(rest[0] - '0');
    }
    return 0;
}

}  // namespace

int orientation(const Decoded& decoded) {
    uint32_t found = exif_orientation(decoded.exif);
    if (!found) found = xmp_orientation(decoded.xmp);
    return found >= 1 && found <= 8 ? static_cast<int>(found) : 1;
}

Image upright(Image image, int orientation) {
    if (orientation == 1) return image;
    const bool swapped = orientation >= 5;
    Image turned(swapped ? image.height : image.width, swapped ? image.width : image.height, "the image");
    // which of the stored sides are walked backwards, by orientation 1 to 8
    constexpr bool FROM_RIGHT[] = {false, true, true, false, false, false, true, true};
    constexpr bool FROM_BOTTOM[] = {false, false, true, true, false, true, true, false};
    const bool from_right = FROM_RIGHT[orientation - 1], from_bottom = FROM_BOTTOM[orientation - 1];
    for (int32_t y = 0; y < turned.height; ++y) {
        for (int32_t x = 0; x < turned.width; ++x) {
            int32_t column = swapped ? y : x, row = swapped ? x : y;
            if (from_right) column = image.width - 1 - column;
            if (from_bottom) row = image.height - 1 - row;
            std::copy_n(image.at(column, row), 3, turned.at(x, y));
        }
    }
    return turned;
}

}  // namespace ptp_core
