import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptp.ptp_graph.allocate import allocate, quantise, rank_descending
from ptp.ptp_graph.reference import divide, integer_weights
from ptp.ptp_graph.schedule import WEIGHT_LEVELS

regions = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, WEIGHT_LEVELS) | st.just(1), min_size=n, max_size=n),
        st.lists(st.integers(1, 576) | st.just(576), min_size=n, max_size=n),
        st.integers(0, 40 * 576),
    )
)


@given(regions)
def test_budgets_equal_the_fractions_and_sum(case):
    weights, capacity, budget = case
    found = allocate(torch.tensor([weights], dtype=torch.int32), torch.tensor([capacity], dtype=torch.int32), budget)
    assert found.dtype == torch.int32
    assert found[0].tolist() == divide(budget, weights, capacity)
    assert found.sum().item() == min(budget, sum(capacity))


def test_a_crop_without_tokens_gets_none():
    levels = quantise(torch.tensor([[0.9, 0.1]]), torch.tensor([[0, 16]], dtype=torch.int32))
    assert levels.tolist() == [[0, WEIGHT_LEVELS]]
    assert allocate(levels, torch.tensor([[0, 16]], dtype=torch.int32), 20).tolist() == [[0, 16]]


def test_a_saturated_crop_passes_its_surplus_on():
    levels = torch.tensor([[8192, 1, 1]], dtype=torch.int32)
    capacity = torch.tensor([[4, 16, 16]], dtype=torch.int32)
    assert allocate(levels, capacity, 11).tolist() == [[4, 4, 3]]  # the odd one goes to the lower tile


def test_products_stay_below_32_bits_at_the_limit():
    """T·N·WEIGHT_LEVELS just below 2^31 is what Schedule admits; the budgets must still sum."""
    count, tokens = 63, 4096
    levels = torch.full((1, count), WEIGHT_LEVELS, dtype=torch.int32)
    capacity = torch.full((1, count), tokens, dtype=torch.int32)
    found = allocate(levels, capacity, count * tokens - 1)
    assert found.sum().item() == count * tokens - 1
    assert found.min().item() == tokens - 1


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1e-38, 1e-30, 3e-20], [0.2, 0.2, 0.6]])
def test_weights_are_quantised_as_in_the_reference(weights):
    array = torch.tensor([weights])
    found = quantise(array, torch.full((1, 3), 5, dtype=torch.int32))
    assert found[0].tolist() == integer_weights(list(array[0].numpy()))
    assert found.min().item() >= 1


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=60)
)
def test_ranks_are_those_of_a_stable_sort(values):
    rank = rank_descending(torch.tensor([values]))[0].tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert [order.index(i) for i in range(len(values))] == rank
