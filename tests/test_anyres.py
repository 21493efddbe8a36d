"""The geometry of anyres tiling equals transformers', in integers, for every size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, unpad_image

from ptp.anyres import Grid, PackedLayout, choose_grid, resized_inside
from ptp.errors import ConfigError

LLAVA_NEXT: tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
sides = st.integers(1, 10_000)
grid_lists = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=9)
# sizes whose aspect ratio equals the grid's are where the two branches of unpadding meet
layouts = st.tuples(sides, sides, st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(1, 32)) | st.builds(
    lambda grid, side, factor: (grid[0] * factor, grid[1] * factor, grid, side),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(1, 32),
    st.integers(1, 2000),
)


@given(sides, sides, grid_lists | st.just(list(LLAVA_NEXT)), st.sampled_from([14, 112, 336, 384]))
def test_choose_grid(height: int, width: int, grids: list[Grid], tile: int) -> None:
    pinpoints = [(rows * tile, columns * tile) for rows, columns in grids]
    rows, columns = choose_grid(height, width, grids, tile)
    assert (rows * tile, columns * tile) == select_best_resolution((height, width), pinpoints)


@given(sides, sides, sides, sides)
def test_resized_inside(height: int, width: int, target_height: int, target_width: int) -> None:
    image = np.broadcast_to(np.uint8(0), (3, height, width))
    expected = get_patch_output_size(image, (target_height, target_width), ChannelDimension.FIRST)
    assert resized_inside(height, width, target_height, target_width) == expected


@given(layouts)
@settings(max_examples=500)
def test_padding_and_kept_size(layout: tuple[int, int, Grid, int]) -> None:
    height, width, grid, side = layout
    packed = PackedLayout(height=height, width=width, grid=grid, side=side)
    rows, columns = grid[0] * side, grid[1] * side
    indices = torch.arange(rows * columns).reshape(1, rows, columns)
    kept = unpad_image(indices, (height, width))[0]
    assert packed.kept_size == tuple(kept.shape)
    if kept.numel():
        assert packed.padding == tuple(int(x) for x in divmod(int(kept[0, 0]), columns))


@given(sides, sides)
@settings(max_examples=100)
def test_cells_name_the_token_at_every_position(height: int, width: int) -> None:
    side, tile = 4, 56
    grid = choose_grid(height, width, LLAVA_NEXT, tile)
    packed = PackedLayout(height=height, width=width, grid=grid, side=side)
    tokens = 1 + grid[0] * grid[1]
    features = torch.arange(tokens * side * side, dtype=torch.float32).reshape(tokens, side * side, 1)
    expected = _pack(features, (height, width))
    assert packed.length == len(expected)
    for position, value in enumerate(expected):
        cell = packed.cell(position)
        assert cell.is_newline == (value < 0)
        if not cell.is_newline:
            assert (cell.tile * side + cell.row) * side + cell.column == value
        elif packed.kept_size[1]:  # a row can be nothing but its newline: 5x1 pixels in the 1x2 grid
            before = packed.cell(position - 1)
            assert (cell.tile, cell.row, cell.column) == (before.tile, before.row, before.column + 1)


def _pack(features: torch.Tensor, size: tuple[int, int]) -> list[int]:
    """Return transformers' own packed sequence of (T, N, 1) features, −1 for newline tokens."""
    model = LlavaNextModel.__new__(LlavaNextModel)
    torch.nn.Module.__init__(model)
    model.config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=56, patch_size=14),
        text_config=LlamaConfig(),
        image_grid_pinpoints=[[rows * 56, columns * 56] for rows, columns in LLAVA_NEXT],
    )
    packed, _ = model.pack_image_features([features], torch.tensor([size]), "default", torch.tensor([-1.0]))
    return [int(value) for value in packed[0].flatten()]


@pytest.mark.parametrize("position", [-1, 36])
def test_positions_outside_the_sequence_are_refused(position: int) -> None:
    packed = PackedLayout(height=10, width=10, grid=(1, 1), side=4)
    assert packed.length == 36
    with pytest.raises(ConfigError, match="0 to 35"):
        packed.cell(position)


@pytest.mark.parametrize(("height", "grid", "side"), [(0, (1, 1), 4), (5, (0, 1), 4), (5, (1, 1), 0)])
def test_empty_layouts_are_refused(height: int, grid: Grid, side: int) -> None:
    with pytest.raises(ConfigError, match="positive"):
        PackedLayout(height=height, width=5, grid=grid, side=side)
