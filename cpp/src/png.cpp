// PNG through libpng, with Pillow's conversions to RGB.
#include <png.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "error.hpp"
#include "image.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr png_alloc_size_t MAX_CHUNK_BYTES = 1 << 24;  // of a text or a profile, decompressed
constexpr png_uint_32 MAX_CHUNKS = 1000;
constexpr int RAW_PROFILE_HEADER_LINES = 3;

// libpng is C: an error jumps, so the jumping functions below hold nothing that needs a destructor.
struct Reader {
    png_structp png;
    png_infop info;
    const char* data;
    size_t left;
    int depth;  // bits of a sample in the file
    char text[128];
};

void on_error(png_structp png, png_const_charp text) {
    auto* reader = static_cast<Reader*>(png_get_error_ptr(png));
    std::strncpy(reader->text, text, sizeof reader->text - 1);
    png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

void read_data(png_structp png, png_bytep out, size_t count) {
    auto* reader = static_cast<Reader*>(png_get_io_ptr(png));
    if (count > reader->left) png_error(png, "image file is truncated");
    std::memcpy(out, reader->data, count);
    reader->data += count;
    reader->left -= count;
}

bool read_header(Reader& reader) {
    if (setjmp(png_jmpbuf(reader.png))) return false;
    png_set_read_fn(reader.png, &reader, read_data);
    png_set_user_limits(reader.png, MAX_PIXELS, MAX_PIXELS);
    png_set_chunk_malloc_max(reader.png, MAX_CHUNK_BYTES);
    png_set_chunk_cache_max(reader.png, MAX_CHUNKS);
    png_read_info(reader.png, reader.info);
    reader.depth = png_get_bit_depth(reader.png, reader.info);
    png_set_packing(reader.png);  // one byte for each sample below 8 bits, not scaled
    png_set_interlace_handling(reader.png);
    png_read_update_info(reader.png, reader.info);
    return true;
}

bool read_rows(Reader& reader, png_bytepp rows) {
    if (setjmp(png_jmpbuf(reader.png))) return false;
    png_read_image(reader.png, rows);
    return true;
}

// What follows the pixels may be missing or damaged, as in Pillow.
void read_end(Reader& reader) {
    if (setjmp(png_jmpbuf(reader.png))) return;
    png_read_end(reader.png, reader.info);
}

struct Colour {
    int red, green, blue;
};

// How samples of a file become RGB.
struct Format {
    int type, depth, channels;
    png_const_colorp palette = nullptr;
    int num_colours = 0;
    png_const_bytep alphas = nullptr;
    int num_alphas = 0;
    std::optional<Colour> transparent = std::nullopt;
};

Format format_of(const Reader& reader) {
    Format format{png_get_color_type(reader.png, reader.info), reader.depth, png_get_channels(reader.png, reader.info)};
    png_colorp palette = nullptr;
    png_get_PLTE(reader.png, reader.info, &palette, &format.num_colours);
    format.palette = palette;
    png_bytep alphas = nullptr;
    png_color_16p colour = nullptr;
    int count = 0;
    if (!png_get_tRNS(reader.png, reader.info, &alphas, &count, &colour)) return format;
    if (format.type == PNG_COLOR_TYPE_PALETTE) {
        format.alphas = alphas;
        format.num_alphas = count;
    } else if (format.type == PNG_COLOR_TYPE_GRAY) {
        // Pillow compares the file's value with the level it became
        const int gray = format.depth == 1 ? (colour->gray ? 255 : 0) : colour->gray & 0xFF;
        format.transparent = Colour{gray, gray, gray};
    } else {
        format.transparent = Colour{colour->red & 0xFF, colour->green & 0xFF, colour->blue & 0xFF};
    }
    return format;
}

// Return a grey level of a file as 8 bits; 16 are clipped, not scaled, as Pillow does.
uint8_t gray_level(const Format& format, const uint8_t* in) {
    constexpr int SCALES[] = {0, 255, 85, 0, 17};  // by bits
    if (format.depth == 16) return in[0] ? 255 : in[1];
    return static_cast<uint8_t>(format.depth == 8 ? *in : *in * SCALES[format.depth]);
}

void convert_pixel(const Format& format, const uint8_t* in, uint8_t* out, const std::string& name) {
    const size_t step = format.depth == 16 ? 2 : 1;  // of 16 bits, Pillow keeps the upper 8
    uint8_t red, green, blue, alpha = 255;
    if (format.type == PNG_COLOR_TYPE_PALETTE) {
        if (*in >= format.num_colours)
            throw Error(PTP_ERROR_IMAGE, name + " cannot be decoded").got("a colour that is not in its palette");
        const png_color& colour = format.palette[*in];
        red = colour.red, green = colour.green, blue = colour.blue;
        if (*in < format.num_alphas) alpha = format.alphas[*in];
    } else if (format.type & PNG_COLOR_MASK_COLOR) {
        red = in[0], green = in[step], blue = in[2 * step];
        if (format.type & PNG_COLOR_MASK_ALPHA) alpha = in[3 * step];
    } else if (format.type & PNG_COLOR_MASK_ALPHA) {
        red = green = blue = in[0];
        alpha = in[step];
    } else {
        red = green = blue = gray_level(format, in);
    }
    if (const auto& t = format.transparent; t && red == t->red && green == t->green && blue == t->blue) alpha = 0;
    put_over_white(out, red, green, blue, alpha);
}

void convert(const Format& format, const std::vector<uint8_t>& samples, size_t stride, Image& image,
             const std::string& name) {
    const size_t step = static_cast<size_t>(format.channels) * (format.depth == 16 ? 2 : 1);
    for (int32_t y = 0; y < image.height; ++y) {
        const uint8_t* in = samples.data() + static_cast<size_t>(y) * stride;
        uint8_t* out = image.at(0, y);
        for (int32_t x = 0; x < image.width; ++x, in += step, out += 3) convert_pixel(format, in, out, name);
    }
}

// ImageMagick's form of EXIF in a text: three lines, then hexadecimal digits.
std::string unhex(std::string_view text) {
    for (int line = 0; line < RAW_PROFILE_HEADER_LINES; ++line)
        text.remove_prefix(std::min(text.find('\n'), text.size() - 1) + 1);
    std::string bytes, digits;
    for (const char c : text) {
        if (!std::isxdigit(static_cast<unsigned char>(c))) continue;
        digits += c;
        if (digits.size() < 2) continue;
        bytes += static_cast<char>(std::stoi(digits, nullptr, 16));
        digits.clear();
    }
    return bytes;
}

void collect_metadata(const Reader& reader, Decoded& decoded) {
    png_textp texts = nullptr;
    int count = 0;
    png_get_text(reader.png, reader.info, &texts, &count);
    for (int i = 0; i < count; ++i) {
        const size_t length = std::max(texts[i].text_length, texts[i].itxt_length);
        const std::string_view key = texts[i].key, text(texts[i].text, length);
        if (key == "XML:com.adobe.xmp") decoded.xmp = text;
        if (key == "Raw profile type exif" && !text.empty()) decoded.exif = unhex(text);
    }
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    if (png_get_eXIf_1(reader.png, reader.info, &size, &exif)) {
        decoded.exif.assign(reinterpret_cast<const char*>(exif), size);
    }
}

Error undecodable(const Reader& reader, const std::string& name) {
    return Error(PTP_ERROR_IMAGE, name + " cannot be decoded")
        .got(reader.text)
        .advise("check that the file is complete");
}

}  // namespace

Decoded decode_png(std::string_view bytes, const std::string& name, int64_t max_pixels) {
    Reader reader{nullptr, nullptr, bytes.data(), bytes.size(), 0, ""};
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_error, on_warning);
    reader.info = reader.png ? png_create_info_struct(reader.png) : nullptr;
    const struct Guard {
        Reader* reader;
        ~Guard() { png_destroy_read_struct(&reader->png, &reader->info, nullptr); }
    } guard{&reader};
    if (!reader.info) throw std::bad_alloc();
    if (!read_header(reader)) throw undecodable(reader, name);
    Decoded decoded;
    decoded.image =
        Image(png_get_image_width(reader.png, reader.info), png_get_image_height(reader.png, reader.info), name,
              max_pixels);
    const size_t stride = png_get_rowbytes(reader.png, reader.info), height = static_cast<size_t>(decoded.image.height);
    std::vector<uint8_t> samples(stride * height);
    std::vector<png_bytep> rows(height);
    for (size_t y = 0; y < height; ++y) rows[y] = samples.data() + y * stride;
    const Format format = format_of(reader);
    if (!read_rows(reader, rows.data())) throw undecodable(reader, name);
    convert(format, samples, stride, decoded.image, name);
    read_end(reader);
    collect_metadata(reader, decoded);
    return decoded;
}

}  // namespace ptp_core
