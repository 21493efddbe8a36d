"""Geometry of LLaVA-NeXT's anyres tiling: which grid an image gets, what padding removes, where tokens lie.

Source: LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next/) as implemented by transformers'
`select_best_resolution`, `get_patch_output_size` and `unpad_image`; the integer forms equal their float forms
for every image side below 10^7 (`tests/test_anyres.py` tries random ones).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ptp.errors import ConfigError

Grid = tuple[int, int]
"""Rows and columns of a crop grid, in tiles."""


def choose_grid(height: int, width: int, grids: Sequence[Grid], tile_size: int) -> Grid:
    """Return the grid that keeps most of an image's pixels and wastes fewest; the first of equals.

    Args:
        height: height of the image in pixels, at least 1.
        width: width of the image in pixels, at least 1.
        grids: the checkpoint's grids in its own order (ties go to the first).
        tile_size: side of a tile in pixels.
    """
    best: tuple[int, int] | None = None
    chosen = grids[0]
    for rows, columns in grids:
        # float arithmetic on purpose: int() of a float product decides ties, and the model's own processor does so
        scale = min(columns * tile_size / width, rows * tile_size / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        score = (effective, effective - rows * columns * tile_size * tile_size)
        if best is None or score > best:
            best, chosen = score, (rows, columns)
    return chosen


def resized_inside(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Return the size (height, width) of an image scaled to fit inside a target, its aspect ratio kept."""
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        return min(_ceil(height * scale_width), target_height), target_width
    return target_height, min(_ceil(width * scale_height), target_width)


def _ceil(value: float) -> int:
    return -int(-value // 1)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Where a visual token of the packed sequence lies.

    Attributes:
        tile: 0 for the thumbnail, then the crops in raster order of the grid.
        row: row of the token inside its tile.
        column: column inside its tile; for a newline token, the number of columns of its row.
    """

    tile: int
    row: int
    column: int
    is_newline: bool = False


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """The packed sequence of one image: thumbnail, then the unpadded crop rows, a newline token after each.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        grid: rows and columns of its crop grid.
        side: visual tokens on a side of a tile.
    """

    height: int
    width: int
    grid: Grid
    side: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, *self.grid, self.side) < 1:
            raise ConfigError("a packed layout needs positive sizes", got=self)

    @property
    def padding(self) -> tuple[int, int]:
        """Token rows removed at top and at bottom, and token columns removed at left and at right."""
        rows, columns = self.grid[0] * self.side, self.grid[1] * self.side
        if self.width * rows > self.height * columns:
            return (rows - self.height * columns // self.width) // 2, 0
        return 0, (columns - self.width * rows // self.height) // 2

    @property
    def kept_size(self) -> tuple[int, int]:
        """Token rows and columns of the crop grid that unpadding leaves."""
        pad_rows, pad_columns = self.padding
        return self.grid[0] * self.side - 2 * pad_rows, self.grid[1] * self.side - 2 * pad_columns

    @property
    def length(self) -> int:
        """Number of tokens M of the packed sequence."""
        rows, columns = self.kept_size
        return self.side * self.side + rows * (columns + 1)

    def cell(self, position: int) -> Cell:
        """Return where the token at a position (0 ≤ position < length) lies."""
        if not 0 <= position < self.length:
            raise ConfigError("position outside the packed sequence", got=position, expected=f"0 to {self.length - 1}")
        tokens_per_tile = self.side * self.side
        if position < tokens_per_tile:
            return Cell(tile=0, row=position // self.side, column=position % self.side)
        pad_rows, pad_columns = self.padding
        row, column = divmod(position - tokens_per_tile, self.kept_size[1] + 1)
        is_newline = column == self.kept_size[1]
        tile_row, row_in_tile = divmod(row + pad_rows, self.side)
        tile_column, column_in_tile = divmod(column + pad_columns - is_newline, self.side)
        return Cell(
            tile=1 + tile_row * self.grid[1] + tile_column,
            row=row_in_tile,
            column=column_in_tile + is_newline,
            is_newline=is_newline,
        )
