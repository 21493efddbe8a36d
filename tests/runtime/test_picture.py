"""The picture shows the kept tokens where they are, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from fake_bundle import FakeBundle
from PIL import Image

from ptp.bundle import Manifest
from ptp.bundle.manifest import Tiling
from ptp.runtime import picture
from ptp.runtime.picture import draw_kept, draw_levels
from ptp.runtime.preprocess.tiles import make_tiles
from ptp.runtime.vision import VisualTokens

SIDE = 4
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def tiling(side: int = SIDE) -> Tiling:
    return Tiling(
        tile_size=side * 14,
        tokens_per_side=side,
        max_tiles=5,
        grids=GRIDS,
        resample="bicubic",
        rescale_factor=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def visual(image: Image.Image, positions: list[int], side: int = SIDE) -> VisualTokens:
    tiles = make_tiles(image, tiling(side))
    tokens = VisualTokens(
        features=np.zeros((len(positions), 1)),
        positions=np.array(positions, np.int64),
        packed_length=0,
        tile_budgets=np.zeros(5, np.int32),
        alpha=None,
        tiles=tiles,
    )
    layout = tokens.layout(tiling(side))
    cells = [layout.cell(position) for position in positions]
    for cell in cells:
        tokens.tile_budgets[cell.tile] += not cell.is_newline
    return tokens


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return FakeBundle(tmp_path, [2]).manifest.model_copy(update={"tiling": tiling()})


def bright(panel: Image.Image, cell: int) -> np.ndarray:
    """Return (rows, columns) bool: cells whose centre shows the white image undimmed."""
    pixels = np.asarray(panel.convert("L"), np.int64)
    return pixels[cell // 2 :: cell, cell // 2 :: cell] > 240


def panels(drawn: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Return the thumbnail's and the crops' pixels; both start below the header and caption."""
    top = picture.HEADER + 8 + picture.CAPTION
    side = SIDE * picture.MAX_CELL
    left = 2 * picture.MARGIN + side
    return (
        drawn.crop((picture.MARGIN, top, picture.MARGIN + side, top + side)),
        drawn.crop((left, top, left + size[0], top + size[1])),
    )


def test_kept_tokens_are_bright_and_others_are_not(manifest: Manifest) -> None:
    image = Image.new("RGB", (112, 112), "white")
    thumbnail, crop_row = [5, 10, 15], 16 + 5 * 9  # six rows of eight tokens and a newline above
    drawn = draw_kept(image, visual(image, [*thumbnail, crop_row + 2, crop_row + 6, crop_row + 8]), manifest)
    left, right = panels(drawn, (8 * picture.MAX_CELL, 8 * picture.MAX_CELL))
    assert np.flatnonzero(bright(left, picture.MAX_CELL)).tolist() == thumbnail
    assert np.argwhere(bright(right, picture.MAX_CELL)).tolist() == [[5, 2], [5, 6]]


def test_padding_is_hatched_and_newlines_are_marked(manifest: Manifest) -> None:
    image = Image.new("RGB", (112, 56), "white").resize((112, 80))  # 2x2 grid, padded above and below
    tokens = visual(image, [16, 16 + 8, 16 + 17])
    assert tokens.layout(tiling()).kept_size == (6, 8)
    size = 8 * picture.MAX_CELL
    drawn = draw_kept(image, tokens, manifest)
    _, right = panels(drawn, (size, size))
    assert np.argwhere(bright(right, picture.MAX_CELL)).tolist() == [[1, 0]]
    padding = np.asarray(right)[30 : picture.MAX_CELL, 100 : 4 * picture.MAX_CELL].reshape(-1, 3)
    assert {tuple(colour) for colour in padding.tolist()} == {picture.BACKGROUND, picture.HATCH}
    _, wider = panels(drawn, (size + picture.NEWLINE_GUTTER, size))
    gutter = np.asarray(wider)[picture.MAX_CELL // 2 :: picture.MAX_CELL, size + 6]
    assert [tuple(colour) == picture.ACCENT for colour in gutter.tolist()] == [i in (1, 2) for i in range(8)]


def test_the_levels_alone_are_without_padding(manifest: Manifest) -> None:
    image = Image.new("RGB", (112, 80), "white")  # 2x2 grid, a row of tokens padded above and below
    tokens = visual(image, [5, 16, 16 + 9 + 3, 16 + 17])
    thumbnail, crops = draw_levels(image, tokens, manifest, longest=160)
    assert (thumbnail.size, crops.size) == ((80, 80), (160, 120))
    assert np.flatnonzero(bright(thumbnail, 20)).tolist() == [5]
    assert np.argwhere(bright(crops, 20)).tolist() == [[0, 0], [1, 3]]


def test_nothing_kept_and_everything_kept_can_be_drawn(manifest: Manifest) -> None:
    image = Image.new("RGB", (112, 112), "white")
    size = (8 * picture.MAX_CELL, 8 * picture.MAX_CELL)
    length = visual(image, []).layout(tiling()).length
    for positions, expected in (([], 0), (list(range(length)), 64)):
        _, right = panels(draw_kept(image, visual(image, positions), manifest), size)
        assert bright(right, picture.MAX_CELL).sum() == expected


@pytest.mark.parametrize(("width", "height"), [(3000, 1), (1, 3000), (640, 480), (50, 1000), (5, 1), (1, 5)])
@pytest.mark.parametrize("side", [4, 24])
def test_pictures_stay_readable_in_size(width: int, height: int, side: int, manifest: Manifest) -> None:
    image = Image.new("RGB", (width, height), "white")
    last = visual(image, [], side).layout(tiling(side)).length - 1
    tokens = visual(image, [0, last], side)
    drawn = draw_kept(image, tokens, manifest.model_copy(update={"tiling": tiling(side)}))
    assert 500 < drawn.width <= 1600
    assert 200 < drawn.height <= 1200
