"""The static graph (in torch) chooses exactly the tokens that the readable reference chooses."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptp.anyres import choose_grid
from ptp.export.adapters.base import TileEncoder
from ptp.export.vision import VisionGraph
from ptp.ptp_graph.reference import keep_tokens
from ptp.ptp_graph.schedule import Schedule

TILE = 56
GRIDS = [((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)), ((1, 1),), ((3, 2), (2, 5)), ((6, 6), (1, 40))]
SCORES = {
    "random": lambda random, shape: random.random(shape),
    "ties": lambda random, shape: random.integers(0, 3, shape) / 2,
    "zeros": lambda random, shape: np.zeros(shape),
    "equal": lambda random, shape: np.full(shape, 0.3),
    "one-hot": lambda random, shape: (random.random(shape) > 0.98) * 1.0,
    "huge": lambda random, shape: random.choice([-3e37, 0.0, 1.0, 3e37], shape),
    "fp16": lambda random, shape: random.random(shape).astype(np.float16),
}


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


@st.composite
def cases(draw):
    side = draw(st.sampled_from([1, 2, 4, 5]))
    grids = draw(st.sampled_from(GRIDS))
    keep = draw(st.fractions(Fraction(1, 50), 1) | st.just(Fraction(1)))
    size = draw(
        st.tuples(st.integers(1, 900), st.integers(1, 900)) | st.sampled_from([(1, 3000), (3000, 1), (56, 112)])
    )
    return {
        "schedule": (
            keep,
            side,
            grids,
            draw(st.sampled_from(["keep", "drop"])),
            draw(st.sampled_from(["ratio", "keep_all", "as_region"])),
            draw(st.sampled_from(["cls_cosine", "thumbnail_attention", "uniform"])),
        ),
        "size": size,
        "kind": draw(st.sampled_from(sorted(SCORES))),
        "seed": draw(st.integers(0, 2**31)),
        "with_nan": draw(st.booleans()),
    }


def check(case):
    keep, side, grids, newline, thumbnail, region = case["schedule"]
    total = int(keep * side * side * (1 + max(r * c for r, c in grids)))
    if total == 0 or (thumbnail == "keep_all" and total < side * side):
        return
    if region == "thumbnail_attention" and case["kind"] == "huge":
        return  # this rule sums a softmax, which is never negative and never above 1
    schedule = Schedule(keep=keep, side=side, grids=grids, newline=newline, thumbnail=thumbnail)
    random = np.random.default_rng(case["seed"])
    tiles, tokens = schedule.num_tiles, schedule.tokens_per_tile
    saliency = SCORES[case["kind"]](random, (tiles, tokens)).astype(np.float32)
    cls = random.normal(size=(tiles, 8)).astype(np.float32)
    grid = choose_grid(*case["size"], grids, TILE)
    if case["with_nan"]:  # absent tiles may hold anything
        saliency[1 + grid[0] * grid[1] :] = np.nan
        cls[1 + grid[0] * grid[1] :] = np.nan

    encoder = FakeEncoder(torch.from_numpy(saliency), torch.from_numpy(cls))
    graph = VisionGraph(encoder, schedule, "none", region, 0.1)
    with torch.inference_mode():
        features, positions, num_valid, budgets, length, _, weights = graph(
            torch.zeros(1, tiles, 3, 2, 2), torch.tensor([case["size"]]), torch.tensor([grid])
        )
    expected = keep_tokens(schedule, case["size"], grid, saliency, weights[0].numpy(), None, 0.0)
    count = int(num_valid)
    assert budgets[0].tolist() == expected.tile_budgets
    assert positions[0, :count].tolist() == expected.positions
    assert int(length) == expected.packed_length
    rows = features[0, :, 0].tolist()
    assert rows[:count] == [float(source) for source in expected.sources]
    assert rows[count:] == [0.0] * (schedule.num_kept - count)
    everything = positions[0].tolist()
    assert everything == sorted(set(everything))
    assert len(everything) == schedule.num_kept


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_kept_tokens_equal_the_reference(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_kept_tokens_equal_the_reference_on_many_cases(case):
    check(case)


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_with_an_instruction_too(case, alpha):
    keep, side, grids, newline, *_ = case["schedule"]
    if side < 2 or keep * side * side < 1:
        return
    schedule = Schedule(keep=keep, side=side, grids=grids, newline=newline)
    random = np.random.default_rng(case["seed"])
    shape = (schedule.num_tiles, schedule.tokens_per_tile)
    saliency = SCORES[case["kind"]](random, shape).astype(np.float32)
    cls = random.normal(size=(shape[0], 8)).astype(np.float32)
    grid = choose_grid(*case["size"], grids, TILE)
    encoder = FakeEncoder(torch.from_numpy(saliency), torch.from_numpy(cls))
    prompt = torch.from_numpy(random.normal(size=(1, 6, 2)).astype(np.float32))
    with torch.inference_mode():
        _, positions, num_valid, budgets, _, _, weights, relevance = VisionGraph(
            encoder, schedule, "similarity", "cls_cosine", 0.1
        )(
            torch.zeros(1, shape[0], 3, 2, 2),
            torch.tensor([case["size"]]),
            torch.tensor([grid]),
            torch.tensor([alpha]),
            prompt,
            torch.tensor([[True] * 5 + [False]]),
            torch.tensor([[False, False, True, True, True, True]]),
            torch.tensor([2]),
        )
    expected = keep_tokens(schedule, case["size"], grid, saliency, weights[0].numpy(), relevance[0].numpy(), alpha)
    assert budgets[0].tolist() == expected.tile_budgets
    assert positions[0, : int(num_valid)].tolist() == expected.positions


@pytest.mark.parametrize("keep", [Fraction(1), Fraction(9, 10), Fraction(4, 5)])
def test_more_tokens_than_one_topk_returns(keep):
    """K from 3900 to 4900: the selection takes them in two rounds, and in three at K above 7680."""
    for side, grids in ((20, ((2, 2), (11, 1))), (26, ((12, 1),))):
        check(
            {
                "schedule": (keep, side, grids, "keep", "ratio", "cls_cosine"),
                "size": (2000, 190),
                "kind": "random",
                "seed": 1,
                "with_nan": False,
            }
        )


def test_alpha_changes_the_choice_and_the_question_decides_at_one():
    """α = 0 keeps the salient half of each tile, α = 1 the half that points at the question."""
    schedule = Schedule(keep=Fraction(1, 2), side=2, grids=((1, 1),), newline="drop")
    encoder = FakeEncoder(torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2), torch.ones(2, 3))
    question = torch.tensor([[[1.0, 0.0]]])  # row numbers grow, so later tokens point more towards it
    true = torch.tensor([[True]])

    def kept(alpha):
        return VisionGraph(encoder, schedule, "similarity", "cls_cosine", 0.1)(
            torch.zeros(1, 2, 3, 2, 2),
            torch.tensor([[56, 56]]),
            torch.tensor([[1, 1]]),
            torch.tensor([alpha]),
            question,
            true,
            true,
            torch.tensor([0]),
        )[0][0, :, 0].tolist()

    assert kept(0.0) == [0, 1, 4, 5]
    assert kept(1.0) == [2, 3, 6, 7]


def test_a_question_without_tokens_leaves_the_choice_to_saliency():
    schedule = Schedule(keep=Fraction(1, 2), side=2, grids=((1, 1),), newline="drop")
    encoder = FakeEncoder(torch.tensor([[1.0, 4.0, 2.0, 3.0]] * 2), torch.ones(2, 3))
    nothing = torch.tensor([[False]])
    out = VisionGraph(encoder, schedule, "similarity", "cls_cosine", 0.1)(
        torch.zeros(1, 2, 3, 2, 2),
        torch.tensor([[56, 56]]),
        torch.tensor([[1, 1]]),
        torch.tensor([0.5]),
        torch.ones(1, 1, 2),
        nothing,
        nothing,
        torch.tensor([0]),
    )
    assert out[0][0, :, 0].tolist() == [1, 3, 5, 7]
    assert torch.isfinite(out[-1]).all()
