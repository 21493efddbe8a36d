#include "tiles.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace ptp_core {
namespace {

using Levels256 = std::array<std::array<float, 256>, 3>;

// Return what each 8-bit level of a channel becomes, rounded in transformers' order.
Levels256 normalised_levels(const Tiling& tiling) {
    Levels256 levels;
    for (size_t channel = 0; channel < 3; ++channel) {
        const auto mean = static_cast<float>(tiling.mean[channel]), std = static_cast<float>(tiling.std[channel]);
        for (size_t level = 0; level < 256; ++level) {
            const auto rescaled = static_cast<float>(static_cast<double>(level) * tiling.rescale_factor);
            levels[channel][level] = (rescaled - mean) / std;
        }
    }
    return levels;
}

// Return an image's size scaled to fit inside a target, its aspect ratio kept.
std::pair<int64_t, int64_t> resized_inside(int64_t height, int64_t width, int64_t target_height, int64_t target_width) {
    const double scale_width = static_cast<double>(target_width) / static_cast<double>(width);
    const double scale_height = static_cast<double>(target_height) / static_cast<double>(height);
    const auto up = [](int64_t side, double scale) {
        return static_cast<int64_t>(std::ceil(static_cast<double>(side) * scale));
    };
    if (scale_width < scale_height) return {std::min(up(height, scale_width), target_height), target_width};
    return {target_height, std::min(up(width, scale_height), target_width)};
}

// Return the image in the middle of a black canvas.
Image padded(const Image& image, int64_t height, int64_t width, const std::string& filter) {
    const auto [new_height, new_width] = resized_inside(image.height, image.width, height, width);
    const Image resized = resize(image, static_cast<int32_t>(new_width), static_cast<int32_t>(new_height), filter);
    Image canvas(width, height, "the image's crop grid");
    const int64_t left = (width - new_width) / 2, top = (height - new_height) / 2;
    for (int64_t y = 0; y < new_height; ++y) {
        std::memcpy(canvas.at(left, top + y), resized.at(0, y), static_cast<size_t>(new_width) * 3);
    }
    return canvas;
}

void put_tile(const Image& image, int64_t left, int64_t top, int64_t size, const Levels256& levels, float* out) {
    for (size_t channel = 0; channel < 3; ++channel) {
        for (int64_t y = 0; y < size; ++y) {
            const uint8_t* in = image.at(left, top + y) + channel;
            for (int64_t x = 0; x < size; ++x) *out++ = levels[channel][in[3 * x]];
        }
    }
}

}  // namespace

Grid choose_grid(int64_t height, int64_t width, const std::vector<Grid>& grids, int64_t tile_size) {
    std::pair<int64_t, int64_t> best{-1, 0};
    Grid chosen = grids.front();
    const auto whole = [](int64_t side, double scale) {
        return static_cast<int64_t>(static_cast<double>(side) * scale);
    };
    for (const auto& [rows, columns] : grids) {
        // float arithmetic on purpose: the cut product decides ties, and the model's own processor does so
        const double scale = std::min(static_cast<double>(columns * tile_size) / static_cast<double>(width),
                                      static_cast<double>(rows * tile_size) / static_cast<double>(height));
        const int64_t effective = std::min(whole(width, scale) * whole(height, scale), width * height);
        const std::pair<int64_t, int64_t> score{effective, effective - rows * columns * tile_size * tile_size};
        if (score > best) best = score, chosen = {rows, columns};
    }
    return chosen;
}

Tiles make_tiles(const Image& image, const Tiling& tiling) {
    const int64_t size = tiling.tile_size;
    const Grid grid = choose_grid(image.height, image.width, tiling.grids, size);
    const Levels256 levels = normalised_levels(tiling);
    const auto side = static_cast<int32_t>(size);
    const Image thumbnail = resize(image, side, side, tiling.resample);
    const Image canvas = padded(image, grid.first * size, grid.second * size, tiling.resample);
    const auto tile = static_cast<size_t>(3 * size * size);
    Tiles tiles{std::vector<float>(static_cast<size_t>(tiling.max_tiles) * tile),
                image.height,
                image.width,
                grid,
                tiling.max_tiles,
                size};
    float* out = tiles.pixel_values.data();
    put_tile(thumbnail, 0, 0, size, levels, out);
    for (int64_t row = 0; row < grid.first; ++row) {
        for (int64_t column = 0; column < grid.second; ++column) {
            put_tile(canvas, column * size, row * size, size, levels, out += tile);
        }
    }
    return tiles;
}

}  // namespace ptp_core
