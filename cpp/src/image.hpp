// Images as the model's own processor sees them: upright, RGB, transparency over white (docs/preprocessing.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "ptp.h"

namespace ptp_core {

// Largest image accepted, in pixels: 300 MB as RGB.
constexpr int64_t MAX_PIXELS = 100'000'000;

// Interleaved 8-bit RGB, rows packed, first row on top.
struct Image {
    int32_t width = 0, height = 0;
    std::vector<uint8_t> pixels;  // height · width · 3

    Image() = default;
    // Throws Error where the size is no image's or beyond `max_pixels`.
    Image(int64_t width, int64_t height, const std::string& name, int64_t max_pixels = MAX_PIXELS);

    uint8_t* at(int64_t x, int64_t y) { return pixels.data() + 3 * (y * width + x); }
    const uint8_t* at(int64_t x, int64_t y) const { return pixels.data() + 3 * (y * width + x); }
};

// Write a colour over white, in Pillow's integer arithmetic.
void put_over_white(uint8_t* out, uint8_t red, uint8_t green, uint8_t blue, uint8_t alpha);

// Decode a JPEG or PNG file of at most `max_pixels`; `name` is what errors call it. Throws Error.
Image decode_image(std::string_view bytes, const std::string& name, int64_t max_pixels = MAX_PIXELS);
Image load_image(const std::filesystem::path& path, int64_t max_pixels = MAX_PIXELS);

// Copy a caller's pixels; throws Error where they do not fit their own sizes.
Image image_from_pixels(const ptp_image& image, int64_t max_pixels = MAX_PIXELS);

// What the decoders hand over to `decode_image`: pixels as stored, and the metadata that may hold an orientation.
struct Decoded {
    Image image;
    std::string exif;  // a TIFF structure
    std::string xmp;
};

Decoded decode_jpeg(std::string_view bytes, const std::string& name, int64_t max_pixels);
Decoded decode_png(std::string_view bytes, const std::string& name, int64_t max_pixels);

// Return the EXIF orientation, 1 to 8; 1 where there is none.
int orientation(const Decoded& decoded);

// Return the image as an orientation means it.
Image upright(Image image, int orientation);

}  // namespace ptp_core
