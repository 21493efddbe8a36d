"""docs/algorithm.md by other means than the reference and the graph: an error would have to be made twice.

Packing is transformers' own; float32 is exact fractions rounded once per operation; budgets are read off the water
level, found by sweeping the levels at which regions are full; a token is kept if few enough others beat it.
"""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import floor, ldexp
from types import SimpleNamespace

import torch
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

NEWLINE = -1


@dataclass(frozen=True, kw_only=True)
class ExactlyKept:
    """What is kept of one image; `sources` holds tile·N + token, or NEWLINE, for each kept packed position."""

    positions: list
    sources: list
    tile_budgets: list
    packed_length: int


def packed_by_transformers(image_size, grid, side):
    """Return the unpruned sequence: transformers packs token numbers in place of features."""
    rows, columns = grid
    stand_in = SimpleNamespace(  # all that the method reads of its model: one pixel is one token here
        config=SimpleNamespace(
            vision_config=SimpleNamespace(image_size=side, patch_size=1),
            image_grid_pinpoints=[[rows * side, columns * side]],  # no other to choose from
        )
    )
    numbers = torch.arange((1 + rows * columns) * side**2).reshape(-1, side**2, 1)
    packed, _ = LlavaNextModel.pack_image_features(
        stand_in, [numbers], torch.tensor([image_size]), "default", torch.tensor([NEWLINE])
    )
    return packed[0].flatten().tolist()


def float32(exact):
    """Round a fraction to the nearest float32, ties to even (IEEE 754); it is held as the Python float of equal value.

    No float takes part in an operation: the operands are exact, the result is rounded here and nowhere else.
    """
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    if abs(exact) < Fraction(2) ** exponent:
        exponent -= 1  # now 2^exponent ≤ |exact| < 2^(exponent + 1)
    unit = max(exponent - 23, -149)  # 24 bits, fewer where float32 is subnormal
    rounded = ldexp(round(exact / Fraction(2) ** unit), unit)  # round() of a fraction takes ties to even
    if abs(rounded) >= 2.0**128:
        raise OverflowError(f"{rounded} is no float32")
    return rounded


def scaled_to_one(values):
    if len(set(values)) < 2:
        return [0.0] * len(values)
    low = Fraction(min(values))
    spread = Fraction(float32(Fraction(max(values)) - low))
    return [float32(Fraction(float32(Fraction(value) - low)) / spread) for value in values]


def fused(bottom_up, top_down, alpha):
    weight = Fraction(float32(Fraction(alpha)))
    rest = Fraction(float32(1 - weight))
    return [
        float32(Fraction(float32(rest * Fraction(b))) + Fraction(float32(weight * Fraction(c))))
        for b, c in zip(bottom_up, top_down, strict=True)
    ]


def whole_weights(weights):
    heaviest = Fraction(max(weights))
    if heaviest == 0:
        return [8192] * len(weights)  # no region is better than another
    shares = [Fraction(float32(Fraction(weight) / heaviest)) for weight in weights]
    in_levels = [Fraction(float32(share * 8192)) for share in shares]
    return [max(1, floor(float32(level + Fraction(1, 2)))) for level in in_levels]


def largest(values, count):
    """Return the indices that fewer than `count` others beat: by a higher value, or by an equal one before them."""
    ascending = sorted(values)
    equal_before = Counter()
    chosen = []
    for index, value in enumerate(values):
        higher = len(ascending) - bisect_right(ascending, value)
        if higher + equal_before[value] < count:
            chosen.append(index)
        equal_before[value] += 1
    return chosen


def poured(total, weights, capacities):
    """Divide `total` ≤ Σ capacities as min(capacity, λ · weight), whole tokens, the last by largest remainder."""
    full_at = [Fraction(capacity, weight) for capacity, weight in zip(capacities, weights, strict=True)]
    in_full_ones, rising = 0, sum(weights)
    for region in sorted(range(len(weights)), key=full_at.__getitem__):
        level = Fraction(total - in_full_ones, rising)
        if level <= full_at[region]:
            break  # reached before this region is full, and all that follow are full later still
        in_full_ones += capacities[region]
        rising -= weights[region]
    exact = [min(capacity, level * weight) for capacity, weight in zip(capacities, weights, strict=True)]
    whole = [floor(share) for share in exact]
    remainders = [share - floor(share) for share in exact]
    for region in largest(remainders, total - sum(whole)):
        whole[region] += 1
    return whole


def keep_tokens_exactly(schedule, image_size, grid, saliency, region_weights, relevance, alpha):
    """Choose the tokens of one image; the arguments are those of `ptp.ptp_graph.reference.keep_tokens`.

    Of the schedule only what the user chose is read, none of the sizes that it works out.
    """
    tokens = schedule.side**2
    tiles = 1 + max(rows * columns for rows, columns in schedule.grids)
    keep = schedule.keep
    for_thumbnail = {
        "ratio": keep.numerator * tokens // keep.denominator,
        "keep_all": tokens,
        "as_region": 0,
    }[schedule.thumbnail]
    for_regions = keep.numerator * tiles * tokens // keep.denominator - for_thumbnail

    sequence = packed_by_transformers(image_size, grid, schedule.side)
    is_real = set(sequence) - {NEWLINE}
    real = [[source for source in range(t * tokens, (t + 1) * tokens) if source in is_real] for t in range(tiles)]

    regions = [t for t in range(tiles) if real[t] and (t > 0 or schedule.thumbnail == "as_region")]
    budgets = [for_thumbnail] + [0] * (tiles - 1)
    if regions:
        capacities = [len(real[t]) for t in regions]
        weights = whole_weights([float(region_weights[t]) for t in regions])
        for t, budget in zip(regions, poured(min(for_regions, sum(capacities)), weights, capacities), strict=True):
            budgets[t] = budget

    if relevance is not None:
        in_order = sorted(is_real)
        top_down = dict(zip(in_order, scaled_to_one([relevance.flat[s].item() for s in in_order]), strict=True))
    kept = set()
    for sources, budget in zip(real, budgets, strict=True):
        scores = scaled_to_one([saliency.flat[s].item() for s in sources])
        if relevance is not None:
            scores = fused(scores, [top_down[s] for s in sources], alpha)
        kept.update(sources[index] for index in largest(scores, budget))
    if schedule.newline == "keep":
        kept.add(NEWLINE)
    positions = [position for position, source in enumerate(sequence) if source in kept]
    return ExactlyKept(
        positions=positions,
        sources=[sequence[position] for position in positions],
        tile_budgets=budgets,
        packed_length=len(sequence),
    )
