from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptp.budgets import level_budgets, parse_fraction
from ptp.errors import ConfigError


@given(st.fractions(Fraction(1, 8), 1), st.integers(2, 41), st.integers(2, 30))
def test_the_thumbnails_budget_follows_from_the_total(keep, tiles, side):
    """⌊keep·N⌋, told from ⌊keep·T·N⌋ alone: K is all that a graph needs to know."""
    levels = level_budgets(
        keep, num_tiles=tiles, tokens_per_tile=side**2, num_newlines=9, thumbnail="ratio", newline="keep"
    )
    assert levels.thumbnail == floor(keep * side**2)
    assert levels.thumbnail + levels.crops == floor(keep * tiles * side**2)
    assert levels.newline == 9


@pytest.mark.parametrize("text", ["", "x", "1/0", "nan", "inf", "1e999999999", "0x1", "1_0", " 1", "9" * 1000, "1:2"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ConfigError, match="--keep is not a number"):
        parse_fraction(text, "--keep")


def test_numbers_are_read_as_written():
    assert [parse_fraction(text, "keep") for text in ("0.1", "1/3", ".5", "1e-05", "-2")] == [
        Fraction(1, 10), Fraction(1, 3), Fraction(1, 2), Fraction(1, 100_000), Fraction(-2),
    ]  # fmt: skip
