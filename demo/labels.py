"""Which object each visual token of a scene shows, for training and for measuring where attention falls."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptp.anyres import Grid, resized_inside
from ptp.demo.scenes import Box
from ptp.errors import ConfigError

MIN_COVER = 0.3
"""Share of a token's area that an object must cover for the token to show it, unless its centre lies there."""


def token_labels(
    boxes: Sequence[Box],
    image_size: tuple[int, int],
    grid: Grid,
    *,
    tile_size: int = 112,
    tokens_per_side: int = 8,
    min_cover: float = MIN_COVER,
) -> NDArray[np.int64]:
    """Return which object each token shows: (tiles, side, side), thumbnail first, then the crops in raster order.

    0 is none (background or padding); i + 1 is object i. A token shows the object that covers most of it, if that is
    at least `min_cover`; the token in which an object's centre lies always shows that object. Where two centres lie
    in one token of a thumbnail, the object that covers more of it wins.

    Args:
        boxes: the objects, in pixels of the image.
        image_size: height and width of the image in pixels.
        grid: rows and columns of its crop grid.
        tile_size: side of a tile in pixels.
        tokens_per_side: visual tokens on a side of a tile.
        min_cover: share of a token's area, 0 to 1.

    Raises:
        ConfigError: a size is not positive.
    """
    if min(*image_size, *grid, tile_size, tokens_per_side) < 1:
        raise ConfigError("token labels need positive sizes", got=f"{image_size}, {grid}, {tile_size}")
    rows, columns = grid
    side = tokens_per_side
    corners = np.array([(b.left, b.top, b.right, b.bottom) for b in boxes]).reshape(-1, 4)
    height, width = image_size
    token = tile_size / side
    thumbnail = _label(corners * (np.array([tile_size / width, tile_size / height] * 2) / token), side, side, min_cover)
    placed = (corners * crop_scale(image_size, grid, tile_size) + crop_shift(image_size, grid, tile_size)) / token
    crops = _label(placed, rows * side, columns * side, min_cover)  # (R·side, C·side)
    crops = crops.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)  # (R·C, side, side)
    return np.concatenate([thumbnail[None], crops])


def crop_scale(image_size: tuple[int, int], grid: Grid, tile_size: int) -> NDArray[np.float64]:
    """Return by what x, y, x, y of an image are multiplied in its crop grid: (4,).

    Args:
        image_size: height and width of the image in pixels.
        grid: rows and columns of its crop grid.
        tile_size: side of a tile in pixels.
    """
    height, width = resized_inside(*image_size, grid[0] * tile_size, grid[1] * tile_size)
    return np.array([width / image_size[1], height / image_size[0]] * 2)


def crop_shift(image_size: tuple[int, int], grid: Grid, tile_size: int) -> NDArray[np.float64]:
    """Return where the padding puts the image's corner in its crop grid, as x, y, x, y: (4,).

    Args:
        image_size: height and width of the image in pixels.
        grid: rows and columns of its crop grid.
        tile_size: side of a tile in pixels.
    """
    rows, columns = grid[0] * tile_size, grid[1] * tile_size
    height, width = resized_inside(*image_size, rows, columns)
    return np.array([(columns - width) // 2, (rows - height) // 2] * 2, float)


def _label(corners: NDArray[np.float64], rows: int, columns: int, min_cover: float) -> NDArray[np.int64]:
    """Return the labels of one canvas; corners are in tokens."""
    if not len(corners):
        return np.zeros((rows, columns), np.int64)
    left, top, right, bottom = (corners[:, i, None] for i in range(4))
    x, y = np.arange(columns), np.arange(rows)
    across = np.clip(np.minimum(right, x + 1) - np.maximum(left, x), 0, 1)  # (objects, columns)
    down = np.clip(np.minimum(bottom, y + 1) - np.maximum(top, y), 0, 1)  # (objects, rows)
    cover = down[:, :, None] * across[:, None, :]  # (objects, rows, columns)
    cover[cover < min_cover] = 0
    centre_x = np.clip((left + right)[:, 0] / 2, 0, columns - 1).astype(int)
    centre_y = np.clip((top + bottom)[:, 0] / 2, 0, rows - 1).astype(int)
    number = np.arange(len(corners))
    exact = down[number, centre_y] * across[number, centre_x]
    cover[number, centre_y, centre_x] = 1 + exact  # more than any object that only reaches into the token
    labels: NDArray[np.int64] = np.where(cover.max(0) > 0, cover.argmax(0) + 1, 0)
    return labels


def model_view(image: Image.Image, grid: Grid, tile_size: int = 112) -> tuple[Image.Image, Image.Image]:
    """Return what the model sees of an image: the thumbnail, and the crop grid in one piece.

    Args:
        image: RGB.
        grid: rows and columns of its crop grid.
        tile_size: side of a tile in pixels.
    """
    size = (image.height, image.width)
    rows, columns = grid[0] * tile_size, grid[1] * tile_size
    height, width = resized_inside(*size, rows, columns)
    crops = Image.new("RGB", (columns, rows))
    x, y = crop_shift(size, grid, tile_size)[:2].astype(int).tolist()
    crops.paste(image.resize((width, height), Image.Resampling.BICUBIC), (x, y))
    return image.resize((tile_size, tile_size), Image.Resampling.BICUBIC), crops
