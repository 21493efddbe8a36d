"""Cut an image into the encoder's tiles, pixel for pixel as the model's own image processor does."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptp.anyres import Grid, choose_grid, resized_inside
from ptp.bundle.manifest import Tiling


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The encoder's input for one image.

    Attributes:
        pixel_values: (T, 3, S, S) float32, normalised: the thumbnail, the crops in raster order, then zeros.
        image_size: height and width of the image in pixels.
        grid: rows and columns of its crop grid.
    """

    pixel_values: NDArray[np.float32]
    image_size: tuple[int, int]
    grid: Grid

    @property
    def count(self) -> int:
        """Number of tiles that hold a part of the image, thumbnail included."""
        return 1 + self.grid[0] * self.grid[1]


def make_tiles(image: Image.Image, tiling: Tiling) -> Tiles:
    """Cut an RGB image into a thumbnail and the crops of the grid that suits it best.

    Equal to `LlavaNextImageProcessor` of transformers, PIL backend: 8-bit resize, black padding, then
    (pixel · rescale_factor − mean) / std.

    Args:
        image: mode RGB (`load_image`).
        tiling: sizes, grids and normalisation of the model.
    """
    size = tiling.tile_size
    grid = choose_grid(image.height, image.width, tiling.grids, size)
    resample = Image.Resampling[tiling.resample.upper()]
    with ThreadPoolExecutor(1) as thread:  # Pillow resizes outside of Python's lock
        resizing = thread.submit(image.resize, (size, size), resample)
        canvas = _padded(image, grid[0] * size, grid[1] * size, resample)
        thumbnail = np.asarray(resizing.result())[None]  # (1, S, S, 3)
    crops = np.asarray(canvas).reshape(grid[0], size, grid[1], size, 3)  # (R, S, C, S, 3)
    crops = crops.transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3)  # (R·C, S, S, 3)
    pixels = np.concatenate([thumbnail, crops]).transpose(0, 3, 1, 2)  # (1 + R·C, 3, S, S)
    return normalised_tiles(pixels, (image.height, image.width), grid, tiling)


def normalised_tiles(pixels: NDArray[np.uint8], image_size: tuple[int, int], grid: Grid, tiling: Tiling) -> Tiles:
    """Return the encoder's input from 8-bit tiles.

    Args:
        pixels: (1 + R·C, 3, S, S), thumbnail and crops.
        image_size: height and width of the image in pixels.
        grid: rows R and columns C of its crop grid.
        tiling: number of tiles and normalisation of the model.
    """
    pixel_values = np.zeros((tiling.max_tiles, *pixels.shape[1:]), np.float32)
    for channel, values in enumerate(_normalised_levels(tiling)):
        pixel_values[: len(pixels), channel] = values[pixels[:, channel]]
    return Tiles(pixel_values=pixel_values, image_size=image_size, grid=grid)


def _padded(image: Image.Image, height: int, width: int, resample: Image.Resampling) -> Image.Image:
    new_height, new_width = resized_inside(image.height, image.width, height, width)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(
        image.resize((new_width, new_height), resample), ((width - new_width) // 2, (height - new_height) // 2)
    )
    return canvas


def _normalised_levels(tiling: Tiling) -> NDArray[np.float32]:
    """Return (3, 256): what each 8-bit level of a channel becomes, rounded in transformers' order."""
    rescaled = (np.arange(256, dtype=np.float64) * tiling.rescale_factor).astype(np.float32)
    mean, std = np.array(tiling.mean, np.float32)[:, None], np.array(tiling.std, np.float32)[:, None]
    levels: NDArray[np.float32] = (rescaled - mean) / std
    return levels
