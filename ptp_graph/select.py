"""Selection: the kept slots of every level, in packed order, exactly K of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptp.ptp_graph.allocate import rank_descending
from ptp.ptp_graph.packing import PackedSlots
from ptp.ptp_graph.schedule import TOPK_LIMIT, Schedule

BEHIND = 1 << 21
"""Added to a key that was taken: larger than every key, since a schedule has fewer than 2^18 tokens."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Kept tokens of a batch, ascending in packed order, padding at the tail.

    Attributes:
        slots: (B, K) int64, kept slot of each row.
        is_real: (B, K) bool, the row is a token and not padding.
        positions: (B, K) int64, packed positions; a padding row continues to count after the packed length.
        num_valid: (B,) int64, rows before the padding.
    """

    slots: Tensor
    is_real: Tensor
    positions: Tensor
    num_valid: Tensor


def top_tokens(scores: Tensor, valid: Tensor, budgets: Tensor) -> Tensor:
    """Mark the best tokens of each tile, as many as its budget, ties to the lower index.

    Args:
        scores: (B, T, N) float32, at least 0 where valid.
        valid: (B, T, N) bool.
        budgets: (B, T) int32.

    Returns:
        (B, T, N) bool.
    """
    rank = rank_descending(torch.where(valid, scores, -1.0))  # a token that is not real never outranks a real one
    return valid & (rank < budgets[:, :, None])


def select(tokens: Tensor, slots: PackedSlots, schedule: Schedule, num_kept: int) -> Selection:
    """Gather the kept slots in packed order.

    The keys are unique integers: a kept slot's key is its packed position, every other slot's is larger than all of
    them, so the K smallest keys are the kept slots in order and then the padding.

    Args:
        tokens: (B, T, N) bool, kept tokens.
        slots: all slots; valid newline slots are all kept.
        schedule: the static sizes.
        num_kept: K; a number of the trace where it is chosen at run time.
    """
    kept = tokens.flatten(1)  # (B, T·N)
    if schedule.levels.newline:
        kept = torch.cat([kept, slots.valid[:, schedule.num_tokens :]], dim=1)  # (B, T·N + R)
    after_all = schedule.max_packed_length + torch.arange(schedule.num_slots, dtype=torch.int32)
    keys = torch.where(kept, slots.positions[:, : schedule.num_slots], after_all[None])  # unique
    smallest, indices = _smallest(keys, num_kept, schedule.num_kept_range[1])  # (B, K)

    num_valid = kept.to(torch.int32).sum(dim=-1, keepdim=True, dtype=torch.int32)  # (B, 1)
    row = torch.arange(num_kept, dtype=torch.int32)[None]  # (1, K)
    is_real = row < num_valid
    positions = torch.where(is_real, smallest, slots.length + row - num_valid)
    return Selection(
        slots=indices,
        is_real=is_real,
        positions=positions.to(torch.int64),
        num_valid=num_valid.squeeze(-1).to(torch.int64),
    )


def _smallest(keys: Tensor, count: int, most: int) -> tuple[Tensor, Tensor]:
    """Return the smallest of unique int32 keys in ascending order, and where they are.

    One TopK takes TOPK_LIMIT of them; where more are wanted, the next TopK runs over the same keys with those already
    taken moved behind all others. Keys stay below 2^20 (`Schedule` bounds them), so the moves do not overflow.

    Args:
        keys: (B, P).
        count: how many, at most P.
        most: the largest that `count` may be, where it is a number of the trace.

    Returns:
        keys (B, count) int32 and indices (B, count) int64.
    """
    if most <= TOPK_LIMIT:
        values, indices = torch.topk(-keys, count, dim=-1, largest=True, sorted=True)
        return -values, indices
    taken: list[tuple[Tensor, Tensor]] = []
    for start in range(0, count, TOPK_LIMIT):
        if taken:
            keys = torch.where(keys <= taken[-1][0][:, -1:], keys + BEHIND, keys)
        values, indices = torch.topk(-keys, min(TOPK_LIMIT, count - start), dim=-1, largest=True, sorted=True)
        taken.append((-values, indices))
    return torch.cat([values for values, _ in taken], dim=-1), torch.cat([indices for _, indices in taken], dim=-1)
