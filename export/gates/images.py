"""Images on which a vision graph is compared with its oracle: every grid, padding on each side, and extremes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptp.anyres import Grid, PackedLayout, choose_grid

MIN_SIZES = 8
SCALES = (1.0, 0.6, 1.7)
STRETCHES = (1.0, 0.83, 1.21, 0.93, 1.09)

Size = tuple[int, int]
Padding = tuple[bool, bool]
"""Whether unpadding removes rows, and whether it removes columns."""


def gate_sizes(grids: Sequence[Grid], tile_size: int, side: int) -> list[Size]:
    """Return image sizes (height, width), at least 8.

    Every grid that any image gets has two, of different padding where there are such: images that fill the grid, that
    are padded at top and bottom, and that are padded at left and right take turns. Then come one so wide and one so
    tall that unpadding may leave no crop token, and more of the first kind if these are few.

    Args:
        grids: crop grids (rows, columns).
        tile_size: side of a tile in pixels.
        side: visual tokens on a side of a tile.
    """
    chosen: list[Size] = []
    spare: list[Size] = []
    for number, grid in enumerate(grids):
        by_padding = _candidates(grid, grids, tile_size, side)
        kinds = [kind for kind in ((False, False), (True, False), (False, True)) if by_padding.get(kind)]
        turn = number % len(kinds) if kinds else 0
        kinds = kinds[turn:] + kinds[:turn]
        chosen += [by_padding[kind][0] for kind in kinds[:2]]
        spare += [by_padding[kind][0] for kind in kinds[2:]]
        spare += [size for kind in kinds for size in by_padding[kind][1:]]
    chosen += [(2, 9 * tile_size), (9 * tile_size, 2)]
    return list(dict.fromkeys(chosen + spare[: max(0, MIN_SIZES - len(chosen))]))


def _candidates(grid: Grid, grids: Sequence[Grid], tile_size: int, side: int) -> dict[Padding, list[Size]]:
    """Return sizes of images that get a grid, by the padding they have there."""
    found: dict[Padding, list[Size]] = {}
    for scale in SCALES:
        for stretch in STRETCHES:
            height, width = round(grid[0] * tile_size * scale * stretch), round(grid[1] * tile_size * scale)
            if choose_grid(height, width, grids, tile_size) == grid:
                rows, columns = PackedLayout(height=height, width=width, grid=grid, side=side).padding
                found.setdefault((rows > 0, columns > 0), []).append((height, width))
    return found


def gate_image(size: Size, seed: int) -> NDArray[np.uint8]:
    """Return an image (height, width, 3) of soft blobs and noise: crops and patches that differ in what they show."""
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.zeros((height, width, 3), np.float32)
    for _ in range(12):
        centre, radius = random.random(2) * size, (0.05 + 0.2 * random.random()) * max(size)
        blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * radius**2))
        image += blob[..., None] * random.random(3).astype(np.float32) * 160
    image += random.normal(0, 12, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
