"""LLaVA-NeXT's anyres packing as static tensor arithmetic: where each candidate token stands in the packed sequence.

The candidates ("slots") have a fixed order whatever the image: thumbnail tokens, the tokens of crop 1 … T − 1, then
one newline token per row of the tallest grid. What changes with the image is only which of them are real and where
they stand. P = T·N + rows of the tallest grid; a policy that drops newlines does so at the selection.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptp.ptp_graph.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class PackedSlots:
    """Slots of a batch of images.

    Attributes:
        positions: (B, P) int32, index in the packed sequence; meaningless where not valid.
        valid: (B, P) bool, the slot exists in the unpruned model's sequence.
        length: (B, 1) int32, length M of the packed sequence.
        pad_rows: (B, 1) int32, token rows that unpadding removes at the top; at the bottom as many.
        pad_columns: (B, 1) int32, the same for columns.
        kept_rows: (B, 1) int32, token rows of the crop grid that are left.
        kept_columns: (B, 1) int32.
        grid_columns: (B, 1) int32, columns of the crop grid in tiles.
    """

    positions: Tensor
    valid: Tensor
    length: Tensor
    pad_rows: Tensor
    pad_columns: Tensor
    kept_rows: Tensor
    kept_columns: Tensor
    grid_columns: Tensor


def packed_slots(image_sizes: Tensor, tile_grid: Tensor, schedule: Schedule) -> PackedSlots:
    """Place every slot in the packed sequence.

    Args:
        image_sizes: (B, 2) int64, height and width of each image in pixels.
        tile_grid: (B, 2) int64, rows and columns of its crop grid.
        schedule: the static sizes.
    """
    side, tokens_per_tile = schedule.side, schedule.tokens_per_tile
    height, width = image_sizes[:, 0:1], image_sizes[:, 1:2]  # (B, 1)
    rows, columns = tile_grid[:, 0:1] * side, tile_grid[:, 1:2] * side  # (B, 1) of the grid, in tokens

    # unpad_image of transformers, in integers: the image fills one direction, the other was padded on both sides
    is_wide = width * rows > height * columns
    pad_rows = torch.where(is_wide, (rows - height * columns // width) // 2, 0)
    pad_columns = torch.where(is_wide, 0, (columns - width * rows // height) // 2)
    pad_rows, pad_columns, rows, columns = (x.to(torch.int32) for x in (pad_rows, pad_columns, rows, columns))
    kept_rows, kept_columns = rows - 2 * pad_rows, columns - 2 * pad_columns  # (B, 1)
    row_length = kept_columns + 1  # the newline token ends a row

    thumbnail = torch.arange(tokens_per_tile, dtype=torch.int32).expand(image_sizes.shape[0], -1)  # (B, N)

    token = torch.arange((schedule.num_tiles - 1) * tokens_per_tile, dtype=torch.int32)[None]  # (1, C·N)
    crop, cell = token // tokens_per_tile, token % tokens_per_tile
    grid_columns = tile_grid[:, 1:2].to(torch.int32)
    row = crop // grid_columns * side + cell // side - pad_rows  # (B, C·N) in the unpadded grid
    column = crop % grid_columns * side + cell % side - pad_columns
    # a tile beyond the grid has row ≥ rows of the grid, so it fails the first test
    crop_valid = (row >= 0) & (row < kept_rows) & (column >= 0) & (column < kept_columns)
    crops = tokens_per_tile + row * row_length + column

    row = torch.arange(schedule.num_newlines, dtype=torch.int32)[None]  # (1, R)
    newlines = tokens_per_tile + row * row_length + kept_columns
    return PackedSlots(
        positions=torch.cat([thumbnail, crops, newlines], dim=1),  # (B, P)
        valid=torch.cat([torch.ones_like(thumbnail, dtype=torch.bool), crop_valid, row < kept_rows], dim=1),
        length=tokens_per_tile + kept_rows * row_length,
        pad_rows=pad_rows,
        pad_columns=pad_columns,
        kept_rows=kept_rows,
        kept_columns=kept_columns,
        grid_columns=grid_columns,
    )
