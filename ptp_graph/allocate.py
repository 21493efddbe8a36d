"""Division of the crops' budget among the crops: exact, in integers, without a loop."""

import torch
from torch import Tensor

from ptp.ptp_graph.schedule import WEIGHT_LEVELS


def quantise(weights: Tensor, capacity: Tensor) -> Tensor:
    """Turn region weights into integers 1..WEIGHT_LEVELS, the largest becoming WEIGHT_LEVELS; 0 without capacity.

    Args:
        weights: (B, C) float32, at least 0.
        capacity: (B, C) int32, real tokens of each crop.
    """
    weights = torch.where(capacity > 0, weights, 0.0)
    largest = weights.amax(dim=-1, keepdim=True)
    share = torch.where(largest > 0, weights / torch.where(largest > 0, largest, 1.0), 1.0)
    levels = torch.floor(share * WEIGHT_LEVELS + 0.5).to(torch.int32)
    return torch.where(capacity > 0, torch.where(levels < 1, 1, levels), 0)


def allocate(levels: Tensor, capacity: Tensor, budget: int | Tensor) -> Tensor:
    """Divide a budget in proportion to integer weights, no crop above its capacity, largest remainder last.

    With n_t = min(capacity_t, λ·w_t) and Σ n_t = total, crop t is saturated exactly when
    Σ_s min(capacity_s·w_t, capacity_t·w_s) ≤ total·w_t; what the saturated crops leave is divided by one integer
    division and handed out by the rank of the remainders, ties to the lower crop. Every product stays below 2^31
    (`Schedule` checks it).

    Args:
        levels: (B, C) int32 weights from `quantise`.
        capacity: (B, C) int32.
        budget: tokens to divide, a number or (1,) int32; what exceeds the capacities is not handed out.

    Returns:
        (B, C) int32, summing to min(budget, Σ capacity).
    """
    everything = capacity.sum(dim=-1, keepdim=True, dtype=torch.int32)  # (B, 1)
    total = torch.where(everything < budget, everything, budget)

    own, other = capacity[:, None, :] * levels[:, :, None], capacity[:, :, None] * levels[:, None, :]  # (B, C, C)
    filled = torch.where(own < other, own, other).sum(dim=-1, dtype=torch.int32)  # (B, C)
    saturated = filled <= total * levels

    given = torch.where(saturated, capacity, 0)
    open_levels = torch.where(saturated, 0, levels)
    rest = total - given.sum(dim=-1, keepdim=True, dtype=torch.int32)
    divisor = open_levels.sum(dim=-1, keepdim=True, dtype=torch.int32)
    divisor = torch.where(divisor < 1, 1, divisor)
    share = rest * open_levels // divisor
    remainder = torch.where(saturated, -1, rest * open_levels - share * divisor)
    left = rest - share.sum(dim=-1, keepdim=True, dtype=torch.int32)
    return given + share + ((rank_descending(remainder) < left) & ~saturated).to(torch.int32)


def rank_descending(values: Tensor) -> Tensor:
    """Return each value's rank along the last axis, 0 the largest, ties to the lower index.

    Ranks by comparing all pairs: the form that every engine builder fuses, where a sort's tie order is undocumented.

    Args:
        values: (…, n), no NaN.

    Returns:
        (…, n) int32, a permutation of 0..n − 1.
    """
    index = torch.arange(values.shape[-1], dtype=torch.int32)
    is_before = index[None, :] < index[:, None]  # (n, n): column stands before row
    this, that = values[..., :, None], values[..., None, :]
    outranks = (that > this) | ((that == this) & is_before)  # (…, n, n)
    return outranks.to(torch.int32).sum(dim=-1, dtype=torch.int32)
