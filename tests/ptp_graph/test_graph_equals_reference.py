"""The static graph chooses exactly the tokens that the readable reference chooses, in torch and in ONNX Runtime."""

from fractions import Fraction
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_graph import Scene, Setting, calls, check, in_onnxruntime, in_torch, settings_

from ptp.alpha import AUTO_INPUT
from ptp.export.adapters.base import TileEncoder
from ptp.export.vision import VisionGraph
from ptp.ptp_graph.fuse import peakedness
from ptp.ptp_graph.schedule import Schedule

LLAVA = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
GRIDS = [LLAVA, ((1, 1),), ((1, 4), (2, 2)), ((3, 2), (2, 5)), ((6, 6), (1, 40)), ((40, 1),), ((1, 17), (1, 1))]


@st.composite
def cases(draw):
    setting = draw(settings_(GRIDS))
    return setting, draw(calls(setting))


@settings(max_examples=300)
@given(cases())
def test_kept_tokens_equal_the_reference(case):
    setting, call = case
    check(in_torch(setting), setting, call)


@pytest.mark.slow
@settings(max_examples=5000)
@given(cases())
def test_kept_tokens_equal_the_reference_on_many_cases(case):
    setting, call = case
    check(in_torch(setting), setting, call)


EXPORTED = {
    "as LLaVA-NeXT": Setting(schedule=Schedule(keep=Fraction(1, 4), side=6, grids=LLAVA)),
    "no question": Setting(schedule=Schedule(keep=Fraction(2, 5), side=4, grids=LLAVA), with_question=False),
    "everything": Setting(schedule=Schedule(keep=Fraction(1), side=3, grids=LLAVA), region="uniform"),
    "one token": Setting(schedule=Schedule(keep=Fraction(1, 18), side=3, grids=((1, 1),), newline="drop")),
    "forty crops": Setting(schedule=Schedule(keep=Fraction(1, 7), side=4, grids=((1, 40), (6, 6))), batch=2),
    "thumbnail competes": Setting(
        schedule=Schedule(keep=Fraction(1, 3), side=5, grids=LLAVA, thumbnail="as_region"), region="thumbnail_attention"
    ),
    "thumbnail stays": Setting(
        schedule=Schedule(keep=Fraction(1, 2), side=4, grids=((3, 2), (2, 5)), thumbnail="keep_all", newline="drop"),
        batch=3,
    ),
    "K at run time": Setting(
        schedule=Schedule(keep=Fraction(1, 4), side=4, grids=LLAVA, keep_range=(Fraction(1, 80), Fraction(1)))
    ),
    "K at run time, batch": Setting(
        schedule=Schedule(
            keep=Fraction(1, 4),
            side=3,
            grids=((2, 2), (1, 8)),
            keep_range=(Fraction(1, 9), Fraction(3, 4)),
            thumbnail="as_region",
        ),
        batch=2,
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each graph, exported once; every third one with the oldest opset."""

    @cache
    def get(name):
        opset = 18 if list(EXPORTED).index(name) % 3 == 2 else 20
        return in_onnxruntime(EXPORTED[name], tmp_path_factory.mktemp("graph"), opset)

    return get


@st.composite
def exported_cases(draw):
    name = draw(st.sampled_from(sorted(EXPORTED)))
    return name, draw(calls(EXPORTED[name]))


@settings(max_examples=300)
@given(case=exported_cases())
def test_exported_graphs_equal_the_reference(exported, case):
    name, call = case
    check(exported(name), EXPORTED[name], call)


@pytest.mark.slow
@settings(max_examples=5000)
@given(case=exported_cases())
def test_exported_graphs_equal_the_reference_on_many_cases(exported, case):
    name, call = case
    check(exported(name), EXPORTED[name], call)


@pytest.mark.parametrize("name", EXPORTED)
def test_every_exported_graph_is_run(exported, name):
    """Hypothesis may leave one out."""
    setting = EXPORTED[name]
    scene = Scene(size=(100, 220), saliency="random", relevance="random", alpha=AUTO_INPUT, seed=3, with_nan=True)
    for keep in {setting.schedule.keep, *(setting.schedule.keep_range or ())}:
        check(exported(name), setting, ([scene] * setting.batch, keep))


@pytest.mark.parametrize("keep", [Fraction(1), Fraction(9, 10), Fraction(4, 5)])
def test_more_tokens_than_one_topk_returns(keep):
    """K from 3900 to 4900: the selection takes them in two rounds, and in three at K above 7680."""
    scene = Scene(size=(2000, 190), saliency="random", relevance="random", alpha=0.5, seed=1, with_nan=False)
    for side, grids in ((20, ((2, 2), (11, 1))), (26, ((12, 1),))):
        setting = Setting(schedule=Schedule(keep=keep, side=side, grids=grids))
        check(in_torch(setting), setting, ([scene], keep))


class FakeEncoder(TileEncoder):
    """Hands prepared scores to the graph: the question's embedding picks them out of the features."""

    def __init__(self, saliency, cls):
        super().__init__()
        self.saliency, self.cls = saliency, cls
        index = torch.arange(saliency.numel(), dtype=torch.float32).reshape(*saliency.shape, 1)
        self.features = torch.cat([index, torch.ones_like(index)], dim=-1)  # (T, N, 2), row number first

    def encode(self, tiles):
        return self.features, self.saliency, self.cls

    def project(self, features):
        return features

    @property
    def newline(self):
        return torch.tensor([-1.0, -1.0])


HALF = Schedule(keep=Fraction(1, 2), side=2, grids=((1, 1),), newline="drop")


def answer(saliency, question, alpha, marked=True):
    """Return the vision graph's outputs for two tiles of four tokens."""
    encoder = FakeEncoder(torch.tensor([saliency] * 2), torch.ones(2, 3))
    return VisionGraph(encoder, HALF, "similarity", "cls_cosine", 0.1)(
        torch.zeros(1, 2, 3, 2, 2),
        torch.tensor([[56, 56]]),
        torch.tensor([[1, 1]]),
        torch.tensor([alpha]),
        torch.tensor([[question]]),
        torch.tensor([[marked]]),
        torch.tensor([[marked]]),
        torch.tensor([0]),
    )


def test_alpha_changes_the_choice_and_the_question_decides_at_one():
    """α = 0 keeps the salient half of each tile, α = 1 the half that points at the question."""

    def kept(alpha):  # row numbers grow, so later tokens point more towards the question
        return answer([4.0, 3.0, 2.0, 1.0], [1.0, 0.0], alpha)[0][0, :, 0].tolist()

    assert kept(0.0) == [0, 1, 4, 5]
    assert kept(1.0) == [2, 3, 6, 7]


def test_a_question_without_tokens_leaves_the_choice_to_saliency():
    for alpha in (0.5, AUTO_INPUT):
        out = answer([1.0, 4.0, 2.0, 3.0], [1.0, 1.0], alpha, marked=False)
        assert out[0][0, :, 0].tolist() == [1, 3, 5, 7]
        assert torch.isfinite(out[-1]).all()


def test_peakedness_is_zero_where_all_hold_the_same_and_highest_for_a_single_peak():
    valid = torch.tensor([[True] * 4 + [False]] * 4)
    scores = torch.tensor([[0.0] * 5, [1, 1, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0]])
    assert peakedness(scores, valid).tolist() == [0.0, 0.0, 0.75, 0.5]


@pytest.mark.parametrize(
    ("saliency", "question", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], [1.0, 0.0], 1.0),  # nothing is salient
        ([4.0, 3.0, 2.0, 1.0], [0.0, 0.0], 0.0),  # the question points nowhere
        ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0], 0.5),  # neither
    ],
)
def test_auto_alpha_follows_the_signal_that_says_something(saliency, question, expected):
    assert answer(saliency, question, AUTO_INPUT)[5].item() == expected
