// From RGB to the encoder's tiles, bit for bit as runtime/preprocess/tiles.py.
#pragma once

#include <vector>

#include "image.hpp"
#include "manifest.hpp"

namespace ptp_core {

// Resize as Pillow does with the filter of this name; throws Error if there is none.
Image resize(const Image& image, int32_t width, int32_t height, const std::string& filter);

struct Tiles {
    std::vector<float> pixel_values;  // (T, 3, S, S)
    int64_t height, width;            // of the image, in pixels
    Grid grid;
    int64_t max_tiles, tile_size;
};

// Return the grid that keeps most of an image's pixels and wastes fewest; the first of equals.
Grid choose_grid(int64_t height, int64_t width, const std::vector<Grid>& grids, int64_t tile_size);

Tiles make_tiles(const Image& image, const Tiling& tiling);

}  // namespace ptp_core
