#include "image.hpp"

#include <cstring>

#include "error.hpp"
#include "json.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr uint64_t MAX_IMAGE_BYTES = uint64_t{1} << 30;  // of a file: three times the largest image's pixels

constexpr std::string_view PNG_SIGNATURE = "\x89PNG\r\n\x1a\n";
constexpr std::string_view JPEG_SIGNATURE = "\xff\xd8\xff";

constexpr size_t SHOWN_CHARACTERS = 80;  // of an address, which may hold the image itself

// Whether a name is `scheme:/...` or `data:...`; a scheme has two letters at least.
bool is_address(std::string_view name) {
    const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    const size_t colon = name.find(':');
    if (colon == std::string_view::npos || colon < 2 || !is_letter(name[0])) return false;
    for (const char c : name.substr(0, colon)) {
        if (!is_letter(c) && !(c >= '0' && c <= '9') && c != '+' && c != '.' && c != '-') return false;
    }
    return starts_with(name, "data:") || starts_with(name.substr(colon + 1), "/");
}

size_t bytes_per_pixel(ptp_pixel_format format) {
    switch (format) {
        case PTP_RGB: return 3;
        case PTP_RGBA: return 4;
        case PTP_GRAY: return 1;
    }
    throw Error(PTP_ERROR_CONFIG, "no such pixel format").got(static_cast<int>(format));
}

}  // namespace

Image::Image(int64_t w, int64_t h, const std::string& name, int64_t max_pixels) {
    const std::string size = std::to_string(w) + "x" + std::to_string(h);
    if (w < 1 || h < 1) throw Error(PTP_ERROR_IMAGE, name + " is empty").got(size + " pixels");
    if (w > max_pixels || h > max_pixels || w * h > max_pixels) {  // no side of a file is above 2^32
        throw Error(PTP_ERROR_IMAGE, name + " is too large")
            .got(size + " = " + std::to_string(w * h) + " pixels")
            .expected("at most " + std::to_string(max_pixels));
    }
    width = static_cast<int32_t>(w);
    height = static_cast<int32_t>(h);
    pixels.resize(static_cast<size_t>(w * h * 3));
}

void put_over_white(uint8_t* out, uint8_t red, uint8_t green, uint8_t blue, uint8_t alpha) {
    // ImagingAlphaComposite on an opaque background: 7 more bits, divisions by 255 rounded
    constexpr uint32_t BITS = 7;
    const uint32_t own = uint32_t{alpha} << BITS, white = (255u << BITS) - own;
    const uint8_t colours[] = {red, green, blue};
    for (int i = 0; i < 3; ++i) {
        const uint32_t sum = colours[i] * own + 255 * white + (0x80u << BITS);
        out[i] = static_cast<uint8_t>((((sum >> 8) + sum) >> 8) >> BITS);
    }
}

Image decode_image(std::string_view bytes, const std::string& name, int64_t max_pixels) {
    Decoded decoded;
    if (starts_with(bytes, PNG_SIGNATURE)) {
        decoded = decode_png(bytes, name, max_pixels);
    } else if (starts_with(bytes, JPEG_SIGNATURE)) {
        decoded = decode_jpeg(bytes, name, max_pixels);
    } else {
        throw Error(PTP_ERROR_IMAGE, name + " is not an image")
            .expected("JPEG or PNG")
            .advise("convert it or pass its pixels");
    }
    const int way = orientation(decoded);
    return upright(std::move(decoded.image), way);
}

Image load_image(const std::filesystem::path& path, int64_t max_pixels) {
    std::error_code problem;
    if (!std::filesystem::is_regular_file(path, problem)) {
        if (is_address(path.string()))
            throw Error(PTP_ERROR_IMAGE, path.string().substr(0, SHOWN_CHARACTERS) + " is an address")
                .expected("an image file")
                .advise("download it first");
        const bool exists = std::filesystem::exists(path, problem);
        throw Error(PTP_ERROR_IMAGE, path.string() + " is " + (exists ? "not a file" : "missing"))
            .expected("an image file");
    }
    return decode_image(read_file(path, MAX_IMAGE_BYTES, PTP_ERROR_IMAGE), path.string(), max_pixels);
}

Image image_from_pixels(const ptp_image& source, int64_t max_pixels) {
    const size_t depth = bytes_per_pixel(source.format);
    Image image(source.width, source.height, "the image", max_pixels);
    const size_t packed = static_cast<size_t>(image.width) * depth, rows = static_cast<size_t>(image.height);
    const size_t stride = source.stride ? source.stride : packed;
    if (!source.pixels) throw Error(PTP_ERROR_CONFIG, "the image has no pixels");
    if (stride < packed)
        throw Error(PTP_ERROR_CONFIG, "the image's stride is shorter than a row")
            .got(static_cast<long long>(stride))
            .expected("at least " + std::to_string(packed));
    // the last row need not be padded; no product overflows: (rows - 1) · stride is only computed where it fits
    if (source.size < packed || (rows > 1 && (source.size - packed) / (rows - 1) < stride)) {
        throw Error(PTP_ERROR_CONFIG, "the image's pixels do not fit its size")
            .got(std::to_string(source.size) + " bytes")
            .expected(std::to_string(rows) + " rows of " + std::to_string(stride));
    }
    for (int32_t y = 0; y < image.height; ++y) {
        const uint8_t* in = source.pixels + static_cast<size_t>(y) * stride;
        uint8_t* out = image.at(0, y);
        if (source.format == PTP_RGB) {
            std::memcpy(out, in, packed);
            continue;
        }
        for (int32_t x = 0; x < image.width; ++x, in += depth, out += 3) {
            if (source.format == PTP_GRAY) {
                std::memset(out, *in, 3);
            } else {
                put_over_white(out, in[0], in[1], in[2], in[3]);
            }
        }
    }
    return image;
}

}  // namespace ptp_core
