from fractions import Fraction

import pytest

from ptp.errors import ConfigError
from ptp.ptp_graph.schedule import Schedule

LLAVA_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def test_llava_next_at_a_quarter_is_the_documented_budget():
    schedule = Schedule(keep=Fraction("0.25"), side=24, grids=LLAVA_GRIDS)
    assert schedule.levels.model_dump() == {"thumbnail": 144, "crops": 576, "newline": 72}
    assert (schedule.num_kept, schedule.num_tokens, schedule.num_tiles) == (792, 2880, 5)


def test_paper_ratio_on_seven_tiles():
    """The paper's example: 1792 = 7 × 256 tokens, 896 kept at 50 %."""
    levels = Schedule(keep=Fraction(1, 2), side=16, grids=((2, 3),), newline="drop").levels
    assert levels.thumbnail + levels.crops == 896


def test_keep_is_exact_where_floats_are_not():
    # 0.29 · 100 is 28.999… in binary floating point
    assert Schedule(keep=Fraction("0.29"), side=10, grids=((1, 1),)).levels.thumbnail == 29


def test_keep_one_keeps_everything():
    schedule = Schedule(keep=Fraction(1), side=4, grids=LLAVA_GRIDS)
    assert schedule.num_kept == schedule.num_slots == 5 * 16 + 12


def test_dropped_newlines_have_no_budget_but_still_count_in_positions():
    schedule = Schedule(keep=Fraction(1), side=4, grids=LLAVA_GRIDS, newline="drop")
    assert schedule.num_kept == 80
    assert schedule.max_packed_length == 92


@pytest.mark.parametrize("keep", [Fraction(0), Fraction(-1, 2), Fraction(3, 2)])
def test_keep_out_of_range_is_refused(keep):
    with pytest.raises(ConfigError, match="0 < keep ≤ 1"):
        Schedule(keep=keep, side=4, grids=((1, 1),))


def test_a_ratio_that_keeps_nothing_says_what_would_keep_one_token():
    with pytest.raises(ConfigError, match="1 of 32 tokens"):
        Schedule(keep=Fraction(1, 1000), side=4, grids=((1, 1),))


def test_sizes_that_overflow_32_bits_are_refused():
    with pytest.raises(ConfigError, match="32-bit"):
        Schedule(keep=Fraction(1, 2), side=64, grids=((8, 8),))


def test_the_thumbnail_may_keep_everything_or_compete():
    options = {"keep": Fraction(1, 2), "side": 4, "grids": ((2, 2),), "newline": "drop"}
    whole = Schedule(**options, thumbnail="keep_all").levels
    assert (whole.thumbnail, whole.crops) == (16, 24)
    region = Schedule(**options, thumbnail="as_region").levels
    assert (region.thumbnail, region.crops) == (0, 40)
    with pytest.raises(
        ConfigError, match=r"the whole thumbnail is more than keep allows; got 0.1; expected at least 0.2"
    ):
        Schedule(**options | {"keep": Fraction(1, 10)}, thumbnail="keep_all")
