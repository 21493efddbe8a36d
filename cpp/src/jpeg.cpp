// JPEG through libjpeg, with Pillow's settings: the default DCT and upsampling, and no data beyond what the file has.
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs it before it

#include <jpeglib.h>

#include <algorithm>
#include <cstring>

#include "error.hpp"
#include "image.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr std::string_view EXIF = std::string_view("Exif\0\0", 6);
constexpr std::string_view XMP = std::string_view("http://ns.adobe.com/xap/1.0/\0", 29);
constexpr int EXIF_MARKER = JPEG_APP0 + 1;
constexpr unsigned MAX_MARKER = 0xFFFF;

// Most pixels that decoding may go over, and most scans: a progressive file of a few kilobytes may ask for minutes.
constexpr int64_t MAX_PASSES = 16;  // over the pixels of the largest image
constexpr int64_t MAX_SCANS = 1000;

struct Failure {
    jpeg_error_mgr base;
    std::jmp_buf jump;
    char text[JMSG_LENGTH_MAX];
};

// libjpeg is C: an error jumps, so nothing between `setjmp` and the jump may need a destructor.
struct Decoder {
    jpeg_decompress_struct info;
    jpeg_source_mgr source;
    Failure failure;
};

void on_error(j_common_ptr info) {
    auto* failure = reinterpret_cast<Failure*>(info->err);
    info->err->format_message(info, failure->text);
    std::longjmp(failure->jump, 1);
}

void on_message(j_common_ptr) {}

void no_source_work(j_decompress_ptr) {}

// No more data: libjpeg suspends, which is how a truncated file is noticed. Its own source would make up an end.
boolean no_more_data(j_decompress_ptr) { return FALSE; }

void skip_data(j_decompress_ptr info, long count) {
    jpeg_source_mgr* source = info->src;
    const size_t skipped = std::min(static_cast<size_t>(std::max(count, 0L)), source->bytes_in_buffer);
    source->next_input_byte += skipped;
    source->bytes_in_buffer -= skipped;
}

void open(Decoder& decoder, std::string_view bytes) {
    decoder.source.init_source = no_source_work;
    decoder.source.fill_input_buffer = no_more_data;
    decoder.source.skip_input_data = skip_data;
    decoder.source.resync_to_restart = jpeg_resync_to_restart;
    decoder.source.term_source = no_source_work;
    decoder.source.next_input_byte = reinterpret_cast<const JOCTET*>(bytes.data());
    decoder.source.bytes_in_buffer = bytes.size();
    decoder.info.src = &decoder.source;
}

enum class Outcome { done, truncated, failed };

// Read the header and choose the colours; `components` is then 1, 3 or 4.
Outcome read_header(Decoder& decoder, std::string_view bytes) {
    if (setjmp(decoder.failure.jump)) return Outcome::failed;
    jpeg_create_decompress(&decoder.info);
    open(decoder, bytes);
    jpeg_save_markers(&decoder.info, EXIF_MARKER, MAX_MARKER);
    if (jpeg_read_header(&decoder.info, TRUE) != JPEG_HEADER_OK) return Outcome::truncated;
    const int components = decoder.info.num_components;
    decoder.info.out_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
    return Outcome::done;
}

Outcome read_pixels(Decoder& decoder, uint8_t* pixels, size_t stride) {
    if (setjmp(decoder.failure.jump)) return Outcome::failed;
    if (!jpeg_start_decompress(&decoder.info)) return Outcome::truncated;
    while (decoder.info.output_scanline < decoder.info.output_height) {
        JSAMPROW row = pixels + decoder.info.output_scanline * stride;
        if (jpeg_read_scanlines(&decoder.info, &row, 1) != 1) return Outcome::truncated;
    }
    return Outcome::done;
}

void refuse(Outcome outcome, const Decoder& decoder, const std::string& name) {
    if (outcome == Outcome::done) return;
    throw Error(PTP_ERROR_IMAGE, name + " cannot be decoded")
        .got(outcome == Outcome::truncated ? "image file is truncated" : decoder.failure.text)
        .advise("check that the file is complete");
}

// Return the number of scans, up to the end marker or the end of the data.
int64_t count_scans(std::string_view bytes) {
    constexpr unsigned char SOI = 0xD8, EOI = 0xD9, SOS = 0xDA, SOF0 = 0xC0, RST0 = 0xD0, FILL = 0xFF;
    const auto byte = [&](size_t place) { return static_cast<unsigned char>(bytes[place]); };
    int64_t scans = 0;
    for (size_t place = bytes.find('\xff'); place != std::string_view::npos; place = bytes.find('\xff', place)) {
        while (place < bytes.size() && byte(place) == FILL) ++place;
        if (place == bytes.size()) break;
        const unsigned char code = byte(place++);
        if (code == EOI) break;
        if (code < SOF0 || (code >= RST0 && code <= SOI)) continue;  // stuffed zeros, restarts, no segment
        if (code == SOS) ++scans;
        const size_t length = place + 2 <= bytes.size() ? byte(place) * size_t{256} + byte(place + 1) : 0;
        place += std::max(length, size_t{2});
        if (place >= bytes.size()) break;
    }
    return scans;
}

void check_work(std::string_view bytes, const Image& image, const std::string& name, int64_t max_pixels) {
    const int64_t most = std::min(MAX_SCANS, MAX_PASSES * max_pixels / (int64_t{image.width} * image.height));
    const int64_t scans = count_scans(bytes);
    if (scans <= most) return;
    const std::string size = std::to_string(image.width) + "x" + std::to_string(image.height);
    throw Error(PTP_ERROR_IMAGE, name + " takes too much work to decode")
        .got(std::to_string(scans) + " scans of " + size + " pixels")
        .expected("at most " + std::to_string(most));
}

void collect_metadata(const Decoder& decoder, Decoded& decoded) {
    for (const jpeg_marker_struct* marker = decoder.info.marker_list; marker; marker = marker->next) {
        const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
        if (starts_with(data, EXIF)) decoded.exif += data.substr(EXIF.size());
        if (starts_with(data, XMP)) decoded.xmp = data.substr(XMP.size());
    }
}

// Product of two levels over 255, rounded.
int product(int a, int b) {
    const int scaled = a * b + 128;
    return (scaled + (scaled >> 8)) >> 8;
}

// Expand one sample or four to RGB; the four are Adobe's, inverted.
void to_rgb(const std::vector<uint8_t>& samples, int components, Image& image) {
    const uint8_t* in = samples.data();
    for (size_t i = 0; i < image.pixels.size(); i += 3, in += components) {
        for (int channel = 0; channel < 3; ++channel) {
            const int ink = components == 1 ? 0 : in[3] - product(255 - in[channel], in[3]);
            image.pixels[i + static_cast<size_t>(channel)] =
                static_cast<uint8_t>(components == 1 ? in[0] : std::max(ink, 0));
        }
    }
}

}  // namespace

Decoded decode_jpeg(std::string_view bytes, const std::string& name, int64_t max_pixels) {
    Decoder decoder{};
    decoder.info.err = jpeg_std_error(&decoder.failure.base);
    decoder.failure.base.error_exit = on_error;
    decoder.failure.base.output_message = on_message;
    const struct Guard {
        jpeg_decompress_struct* info;
        ~Guard() { jpeg_destroy_decompress(info); }
    } guard{&decoder.info};
    refuse(read_header(decoder, bytes), decoder, name);
    const int components = decoder.info.num_components;
    if (components != 1 && components != 3 && components != 4) {
        throw Error(PTP_ERROR_IMAGE, name + " cannot be decoded")
            .got(std::to_string(components) + " components")
            .expected("1, 3 or 4");
    }
    Decoded decoded;
    decoded.image = Image(decoder.info.image_width, decoder.info.image_height, name, max_pixels);
    check_work(bytes, decoded.image, name, max_pixels);
    collect_metadata(decoder, decoded);
    const size_t stride = decoder.info.image_width * static_cast<size_t>(components);
    std::vector<uint8_t> samples(components == 3 ? 0 : stride * decoder.info.image_height);
    uint8_t* out = components == 3 ? decoded.image.pixels.data() : samples.data();
    refuse(read_pixels(decoder, out, stride), decoder, name);
    if (components != 3) to_rgb(samples, components, decoded.image);
    return decoded;
}

}  // namespace ptp_core
