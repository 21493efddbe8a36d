from fractions import Fraction
from pathlib import Path

import pytest

from ptp.errors import ConfigError
from ptp.export.config import ExportConfig, parse_grid, parse_keep


def test_keep_and_reduction_are_read_exactly():
    assert parse_keep("0.1", None) == (Fraction(1, 10), None)
    assert parse_keep(None, "0.9") == (Fraction(1, 10), None)
    assert parse_keep("1/3", None) == (Fraction(1, 3), None)
    assert parse_keep("1e-1", None) == (Fraction(1, 10), None)


def test_a_range_is_min_opt_max():
    assert parse_keep("0.1:0.25:0.5", None) == (Fraction(1, 4), (Fraction(1, 10), Fraction(1, 2)))
    assert parse_keep("0.5:0.5:0.5", None) == (Fraction(1, 2), (Fraction(1, 2), Fraction(1, 2)))


@pytest.mark.parametrize(
    ("keep", "reduction"),
    [(None, None), ("0.5", "0.5"), ("0", None), ("1.5", None), ("-1", None), ("x", None), ("1/0", None), ("nan", None),
     ("inf", None), (None, "1"), (None, "-0.1"), (None, ""), ("0.1:0.5", None), ("0.5:0.25:0.1", None),
     ("0:0.1:0.5", None),
     ("0.1:0.2:1.1", None), (None, "0.1:0.2:0.3"), ("1e999999999", None), ("0.1:x:0.3", None)],
)  # fmt: skip
def test_bad_ratios_are_refused(keep, reduction):
    with pytest.raises(ConfigError):
        parse_keep(keep, reduction)


def test_a_grid_is_rows_by_columns():
    assert parse_grid("2x3") == (2, 3)
    for text in ("", "2", "2x", "axb", "2x2x2", "-1x2", "²x2"):
        with pytest.raises(ConfigError, match="ROWSxCOLUMNS"):
            parse_grid(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep", Fraction(0)),
        ("alpha", 1.5),
        ("alpha", float("nan")),
        ("alpha", "much"),
        ("max_prompt", 0),
        ("opset", 17),
        ("optimize", "openvino"),
        ("batch", 0),
        ("batch", 65),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    options = {"model": "demo", "out": Path("x"), "keep": Fraction(1, 2)} | {name: value}
    with pytest.raises(ConfigError):
        ExportConfig(**options)


def test_a_weight_for_a_question_that_is_not_looked_at_is_refused():
    with pytest.raises(ConfigError, match="--instruction none does not look at it"):
        ExportConfig(model="demo", out=Path("x"), keep=Fraction(1, 2), instruction="none", alpha=0.5)
