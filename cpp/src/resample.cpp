// Pillow's resize of 8-bit images: two passes with 22-bit fixed-point weights, rounded to 8 bits between them.
#include <algorithm>
#include <array>
#include <cmath>

#include "error.hpp"
#include "text.hpp"
#include "tiles.hpp"

namespace ptp_core {
namespace {

constexpr int PRECISION_BITS = 32 - 8 - 2;  // two bits for weights below 0 and sums above 1
constexpr double PI = 3.14159265358979323846;

struct Filter {
    const char* name;
    double support;
    double (*weight)(double);
};

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bilinear(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

double hamming(double x) {
    x = std::abs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= PI;
    // Pillow's constants are floats
    return std::sin(x) / x * (static_cast<double>(0.54f) + static_cast<double>(0.46f) * std::cos(x));
}

double bicubic(double x) {
    constexpr double A = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((A + 2.0) * x - (A + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * A;
    return 0.0;
}

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= PI;
    return std::sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

constexpr std::array<Filter, 5> FILTERS = {{
    {"box", 0.5, box},
    {"bilinear", 1.0, bilinear},
    {"hamming", 1.0, hamming},
    {"bicubic", 2.0, bicubic},
    {"lanczos", 3.0, lanczos},
}};

// Where a pixel of the output comes from.
struct Window {
    int32_t first;
    std::vector<int32_t> weights;
};

// Pillow, too, refuses a side whose weights would not fit into an int of bytes.
constexpr double MAX_WEIGHTS = 2147483647.0 / sizeof(double);

std::vector<Window> windows(int32_t in, int32_t out, const Filter& filter) {
    const double scale = static_cast<double>(in) / out, filter_scale = std::max(scale, 1.0);
    const double support = filter.support * filter_scale, shrink = 1.0 / filter_scale;
    if (const double size = 2 * std::ceil(support) + 1; size * out > MAX_WEIGHTS)
        throw Error(PTP_ERROR_IMAGE, "the image is too long to be resized").got(in).advise("make it shorter");
    std::vector<Window> all;
    all.reserve(static_cast<size_t>(out));
    std::vector<double> weights;
    for (int32_t i = 0; i < out; ++i) {
        const double centre = (i + 0.5) * scale;
        const int32_t first = std::max(static_cast<int32_t>(centre - support + 0.5), 0);
        const int32_t last = std::min(static_cast<int32_t>(centre + support + 0.5), in);
        weights.clear();
        double sum = 0.0;
        for (int32_t x = first; x < last; ++x) {
            weights.push_back(filter.weight((x - centre + 0.5) * shrink));
            sum += weights.back();
        }
        Window window{first, {}};
        window.weights.reserve(weights.size());
        for (double weight : weights) {
            if (sum != 0.0) weight /= sum;
            window.weights.push_back(static_cast<int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << PRECISION_BITS)));
        }
        all.push_back(std::move(window));
    }
    return all;
}

uint8_t clipped(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> PRECISION_BITS, 0, 255)); }

Image resize_across(const Image& image, int32_t width, const Filter& filter) {
    Image out(width, image.height, "the resized image");
    const auto all = windows(image.width, width, filter);
    for (int32_t y = 0; y < image.height; ++y) {
        uint8_t* to = out.at(0, y);
        for (const Window& window : all) {
            int32_t sums[3] = {1 << (PRECISION_BITS - 1), 1 << (PRECISION_BITS - 1), 1 << (PRECISION_BITS - 1)};
            const uint8_t* from = image.at(window.first, y);
            for (const int32_t weight : window.weights) {
                for (int32_t& sum : sums) sum += *from++ * weight;
            }
            for (const int32_t sum : sums) *to++ = clipped(sum);
        }
    }
    return out;
}

Image resize_down(const Image& image, int32_t height, const Filter& filter) {
    Image out(image.width, height, "the resized image");
    const auto all = windows(image.height, height, filter);
    const size_t row = static_cast<size_t>(image.width) * 3;
    std::vector<int32_t> sums(row);
    for (int32_t y = 0; y < height; ++y) {
        std::fill(sums.begin(), sums.end(), 1 << (PRECISION_BITS - 1));
        const uint8_t* from = image.at(0, all[static_cast<size_t>(y)].first);
        for (const int32_t weight : all[static_cast<size_t>(y)].weights) {
            for (size_t x = 0; x < row; ++x) sums[x] += from[x] * weight;
            from += row;
        }
        std::transform(sums.begin(), sums.end(), out.at(0, y), clipped);
    }
    return out;
}

// Return which pixel each one of the output is a copy of; the places are summed up, as in Pillow.
std::vector<int32_t> nearest(int32_t in, int32_t out) {
    const double scale = static_cast<double>(in) / out;
    std::vector<int32_t> places;
    double place = scale * 0.5;
    for (int32_t i = 0; i < out; ++i, place += scale) places.push_back(std::min(static_cast<int32_t>(place), in - 1));
    return places;
}

Image resize_nearest(const Image& image, int32_t width, int32_t height) {
    Image out(width, height, "the resized image");
    const auto columns = nearest(image.width, width), rows = nearest(image.height, height);
    for (int32_t y = 0; y < height; ++y) {
        for (int32_t x = 0; x < width; ++x) {
            std::copy_n(image.at(columns[static_cast<size_t>(x)], rows[static_cast<size_t>(y)]), 3, out.at(x, y));
        }
    }
    return out;
}

}  // namespace

Image resize(const Image& image, int32_t width, int32_t height, const std::string& name) {
    if (width == image.width && height == image.height) return image;
    if (name == "nearest") return resize_nearest(image, width, height);
    const auto filter = std::find_if(FILTERS.begin(), FILTERS.end(), [&](const Filter& x) { return x.name == name; });
    if (filter == FILTERS.end()) throw Error(PTP_ERROR_BUNDLE, "no such resize filter").got(cited(name));
    if (width == image.width) return resize_down(image, height, *filter);
    if (height == image.height) return resize_across(image, width, *filter);
    // the order of Pillow 13; before, the horizontal pass always came first, and some values differ by one
    const bool down_first = std::max(image.height - height, 0) > 2 * std::max(image.width - width, 0);
    if (down_first) return resize_across(resize_down(image, height, *filter), width, *filter);
    return resize_down(resize_across(image, width, *filter), height, *filter);
}

}  // namespace ptp_core
