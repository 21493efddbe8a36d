"""Image sizes on which a vision graph is compared with its oracle: every grid, padding on each side, and extremes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptp.anyres import Grid, PackedLayout, choose_grid

MIN_SIZES = 8
SCALES = (1.0, 0.6, 1.7)
STRETCHES = (1.0, 0.83, 1.21, 0.93, 1.09)


def gate_sizes(grids: Sequence[Grid], tile_size: int, side: int) -> list[tuple[int, int]]:
    """Return image sizes (height, width), at least 8.

    For each grid that any image gets: one that fills it, one padded at top and bottom, one padded at left and right,
    where such exist; then one so wide and one so tall that unpadding leaves no crop token.

    Args:
        grids: crop grids (rows, columns).
        tile_size: side of a tile in pixels.
        side: visual tokens on a side of a tile.
    """
    sizes: list[tuple[int, int]] = []
    spare: list[tuple[int, int]] = []
    for grid in grids:
        kinds: set[tuple[bool, bool]] = set()
        for height, width in _candidates(grid, tile_size):
            if choose_grid(height, width, grids, tile_size) != grid:
                continue
            padding = PackedLayout(height=height, width=width, grid=grid, side=side).padding
            kind = (padding[0] > 0, padding[1] > 0)
            (spare if kind in kinds else sizes).append((height, width))
            kinds.add(kind)
    sizes += [(2, 9 * tile_size), (9 * tile_size, 2)]
    return list(dict.fromkeys(sizes + spare[: max(0, MIN_SIZES - len(sizes))]))


def _candidates(grid: Grid, tile_size: int) -> list[tuple[int, int]]:
    return [
        (round(grid[0] * tile_size * scale * stretch), round(grid[1] * tile_size * scale))
        for scale in SCALES
        for stretch in STRETCHES
    ]


def gate_image(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
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
