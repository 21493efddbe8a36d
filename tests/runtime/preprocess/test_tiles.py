"""Tiles equal those of transformers' PIL image processor, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ptp.anyres import Grid
from ptp.bundle.manifest import Tiling
from ptp.runtime.preprocess.images import load_image
from ptp.runtime.preprocess.tiles import Tiles, make_tiles

GRIDS: tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def tiling(size: int = 112) -> Tiling:
    return Tiling(
        tile_size=size,
        tokens_per_side=size // 14,
        max_tiles=5,
        grids=GRIDS,
        resample="bicubic",
        rescale_factor=1 / 255,
        mean=MEAN,
        std=STD,
    )


def oracle(image: Image.Image, size: int, resample: int = 3) -> tuple[np.ndarray, tuple[int, int]]:
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_grid_pinpoints=[[rows * size, columns * size] for rows, columns in GRIDS],
        resample=resample,
    )
    batch = processor(image, return_tensors="np")
    return batch["pixel_values"][0], tuple(int(side) for side in batch["image_sizes"][0])


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 10_007 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def assert_equal(tiles: Tiles, expected: tuple[np.ndarray, tuple[int, int]]) -> None:
    pixel_values, image_size = expected
    assert tiles.image_size == image_size
    assert tiles.pixel_values.dtype == np.float32
    assert tiles.count == len(pixel_values)
    np.testing.assert_array_equal(tiles.pixel_values[: tiles.count], pixel_values)
    assert not tiles.pixel_values[tiles.count :].any()


@pytest.mark.parametrize("size", [336, 112])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid(size: int, grid: Grid) -> None:
    image = noise(grid[1] * size - 5, grid[0] * size - 9)
    tiles = make_tiles(image, tiling(size))
    assert tiles.grid == grid
    assert_equal(tiles, oracle(image, size))


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (300, 211),  # padding at top and bottom
        (211, 300),  # padding at left and right
        (225, 223),  # one row more at the bottom than at the top
        (223, 225),
        (1, 1),
        (2, 3),
        (7, 5),
        (113, 337),
        (3000, 1),
        (1, 3000),
        (1111, 13),
    ],
)
def test_odd_sizes(width: int, height: int) -> None:
    image = noise(width, height)
    assert_equal(make_tiles(image, tiling()), oracle(image, 112))


@pytest.mark.parametrize("resample", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_every_filter(resample: str) -> None:
    image = noise(301, 180)
    tiles = make_tiles(image, tiling().model_copy(update={"resample": resample}))
    assert_equal(tiles, oracle(image, 112, Image.Resampling[resample.upper()]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_files_of_every_mode(mode: str, orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (61, 150, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    rgba = Image.fromarray(pixels)
    (rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)).save(path, exif=exif)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = oracle(ImageOps.exif_transpose(image), 112)
    tiles = make_tiles(load_image(path), tiling())
    assert tiles.image_size == ((61, 150) if orientation == 1 else (150, 61))
    assert_equal(tiles, expected)


def test_absent_tiles_are_zero() -> None:
    tiles = make_tiles(noise(400, 200), tiling())
    assert (tiles.grid, tiles.count) == ((1, 2), 3)
    assert tiles.pixel_values[2].any()
    assert not tiles.pixel_values[3:].any()
