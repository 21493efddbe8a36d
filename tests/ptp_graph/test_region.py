"""Each region rule and thumbnail policy on an input that tells it from its neighbours."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptp.anyres import choose_grid
from ptp.ptp_graph.packing import packed_slots
from ptp.ptp_graph.reference import crops_under_thumbnail
from ptp.ptp_graph.region import region_weights, thumbnail_attention
from ptp.ptp_graph.schedule import Schedule

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def weigh(rule, *, thumbnail_is_region=False):
    schedule = Schedule(keep=Fraction(1, 2), side=2, grids=((2, 2),))
    slots = packed_slots(torch.tensor([[64, 64]]), torch.tensor([[2, 2]]), schedule)
    cls = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [1, 1], [-1, 0]]])
    saliency = torch.full((1, 5, 4), 0.1)
    saliency[0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    valid = torch.tensor([[thumbnail_is_region, True, True, True, True]])
    return region_weights(
        rule, cls=cls, saliency=saliency, slots=slots, region_valid=valid, temperature=0.1, schedule=schedule
    )[0]


def test_the_rules_differ_on_one_image():
    cosine = weigh("cls_cosine")
    expected = np.exp(np.array([1, 0, 0.5**0.5, -1]) / 0.1)
    np.testing.assert_allclose(cosine, [0, *(expected / expected.sum())], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(weigh("thumbnail_attention"), [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert weigh("uniform").tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(("rule", "own"), [("thumbnail_attention", 1.0), ("uniform", 1.0)])
def test_a_thumbnail_that_competes_has_a_weight(rule, own):
    assert float(weigh(rule, thumbnail_is_region=True)[0]) == pytest.approx(own)


def test_by_cosine_the_thumbnail_is_like_itself():
    weights = weigh("cls_cosine", thumbnail_is_region=True)
    assert float(weights[0]) == pytest.approx(float(weights[1]))


@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([1, 2, 4, 5, 24]), st.integers(0, 1000))
def test_cells_under_the_thumbnail_equal_the_reference(height, width, side, seed):
    schedule = Schedule(keep=Fraction(1), side=side, grids=GRIDS)
    grid = choose_grid(height, width, GRIDS, 56)
    slots = packed_slots(torch.tensor([[height, width]]), torch.tensor([grid]), schedule)
    saliency = np.random.default_rng(seed).random(side * side).astype(np.float32)
    capacity = slots.valid[:, : schedule.num_tokens].reshape(1, schedule.num_tiles, -1).any(dim=-1)
    found = thumbnail_attention(torch.from_numpy(saliency)[None], slots, capacity, schedule)[0].numpy()
    covered = crops_under_thumbnail(height, width, grid, side)
    for tile in range(1, schedule.num_tiles):
        if capacity[0, tile]:
            np.testing.assert_allclose(found[tile], saliency[covered == tile].sum(), rtol=1e-4, atol=1e-6)
