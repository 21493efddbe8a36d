"""Targets: their names, and which of them a device is."""

import pytest
import tensorrt_rtx

from ptp.engines.targets import TARGETS, target_of_device, targets_of
from ptp.errors import ConfigError

GIB = 1 << 30


def test_the_cards_are_those_that_the_library_knows():
    known = set(tensorrt_rtx.ComputeCapability.__members__) - {"NONE", "CURRENT"}
    cards = [target for target in TARGETS.values() if target.backend == "tensorrt-rtx"]
    assert {target.name.upper() for target in cards} == known
    assert {"SM" + "".join(map(str, target.compute_capability)) for target in cards} == known


def test_a_list_of_targets_is_read_each_once():
    assert [x.name for x in targets_of("sm89, sm86,sm89", "tensorrt-rtx")] == ["sm89", "sm86"]
    assert [x.name for x in targets_of("thor", "tensorrt")] == ["thor"]


@pytest.mark.parametrize(
    ("text", "backend", "names"),
    [
        ("sm86,sm90", "tensorrt-rtx", r"got 'sm90'; expected sm75, sm80, sm86, sm89, sm120, sm121$"),
        ("orin-nano", "tensorrt-rtx", "got 'orin-nano'; expected sm75"),
        ("sm86", "tensorrt", r"got 'sm86'; expected orin-nano, orin-nx, agx-orin, thor$"),
        ("", "tensorrt", "got ''; expected orin-nano"),
    ],
)
def test_an_unknown_target_is_answered_with_what_there_is(text, backend, names):
    with pytest.raises(ConfigError, match=names):
        targets_of(text, backend)


@pytest.mark.parametrize(
    ("capability", "gibibytes", "backend", "name"),
    [  # a board's GPU sees a little less than the board has
        ((8, 7), 7.4, "tensorrt", "orin-nano"),
        ((8, 7), 15.3, "tensorrt", "orin-nx"),
        ((8, 7), 61.4, "tensorrt", "agx-orin"),
        ((11, 0), 122.8, "tensorrt", "thor"),
        ((8, 9), 24, "tensorrt-rtx", "sm89"),
        ((12, 0), 8, "tensorrt-rtx", "sm120"),
    ],
)
def test_a_device_is_the_target_of_its_gpu_nearest_in_memory(capability, gibibytes, backend, name):
    assert target_of_device(capability, round(gibibytes * GIB), backend).name == name


@pytest.mark.parametrize(("capability", "backend"), [((9, 0), "tensorrt-rtx"), ((8, 6), "tensorrt")])
def test_a_device_that_the_library_does_not_build_for_is_refused(capability, backend):
    major, minor = capability
    with pytest.raises(ConfigError, match=rf"got compute capability {major}\.{minor}; expected "):
        target_of_device(capability, 80 * GIB, backend)


def test_scratch_memory_is_limited_where_the_system_shares_it():
    assert TARGETS["orin-nano"].workspace_bytes == GIB
    assert TARGETS["sm86"].workspace_bytes is None
