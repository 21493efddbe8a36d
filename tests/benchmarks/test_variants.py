"""What can be compared, and what each of it may look at."""

from typing import get_args

import pytest

from ptp.benchmarks.evaluation.variants import DEFAULT_VARIANTS, VARIANTS
from ptp.benchmarks.methods import METHODS
from ptp.bundle.manifest import NewlinePolicy, PositionPolicy, RegionRule
from ptp.export.config import ExportConfig


def test_every_method_is_there_under_its_own_name():
    assert {variant.method: name for name, variant in VARIANTS.items() if variant.method} == {n: n for n in METHODS}


def test_ptp_is_the_export_without_options(tmp_path):
    exported = ExportConfig(model="demo", out=tmp_path, keep=1)
    options = VARIANTS["ptp"].ptp
    for name in ("instruction", "region", "alpha", "newline", "positions"):
        assert getattr(options, name) == getattr(exported, name), name


def test_one_line_has_one_way_to_answer():
    assert VARIANTS["unpruned"].ptp is VARIANTS["unpruned"].method is None
    others = [variant for name, variant in VARIANTS.items() if name != "unpruned"]
    assert all((variant.ptp is None) != (variant.method is None) for variant in others)
    assert len({variant.ptp for variant in others if variant.ptp}) == sum(1 for v in others if v.ptp), "the same twice"


def test_every_value_of_every_switch_is_there():
    options = [variant.ptp for variant in VARIANTS.values() if variant.ptp]
    assert {(o.instruction, o.region) for o in options} >= {
        (instruction, region) for instruction in ("attention", "none") for region in get_args(RegionRule)
    }
    assert {o.alpha for o in options} == {None, 0.0, 0.25, 0.75, 1.0, "auto"}
    assert {o.newline for o in options} == set(get_args(NewlinePolicy))
    assert {o.positions for o in options} == set(get_args(PositionPolicy))
    assert all(o.alpha is None for o in options if o.instruction == "none")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("unpruned", "unpruned"),
        ("ptp", "ptp"),
        ("ptp-none", "ptp"),
        ("random", "blind"),
        ("visionzip", "blind"),
        ("dart", "question"),  # its pivots are the prompt's tokens
        ("dart_image", "blind"),
        ("fastv", "question"),
    ],
)
def test_families(name, family):
    assert VARIANTS[name].family == family


def test_by_default_each_method_runs_in_one_form():
    assert len(set(DEFAULT_VARIANTS)) == len(DEFAULT_VARIANTS)
    assert set(DEFAULT_VARIANTS) <= set(VARIANTS)
    assert {name for name in METHODS if "_" not in name} <= set(DEFAULT_VARIANTS)
    assert {VARIANTS[name].family for name in DEFAULT_VARIANTS} == {"unpruned", "ptp", "blind", "question"}
