"""The readable form of the algorithm: numpy, loops, one image at a time. The graph must choose the same tokens.

Nothing here but the level budgets is shared with the graph: packing builds the sequence as transformers does, in floats
and by slicing; the budgets come from fractions, clamped and handed out again until nothing changes; ranks come from a
sort.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ptp.anyres import Grid
from ptp.ptp_graph.schedule import WEIGHT_LEVELS, Schedule

Floats = NDArray[np.float32]
NEWLINE = -1


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of one image.

    Attributes:
        positions: packed positions, ascending.
        sources: for each of them tile·N + token, or NEWLINE.
        tile_budgets: kept tokens of each tile.
        packed_length: length M of the unpruned sequence.
    """

    positions: list[int]
    sources: list[int]
    tile_budgets: list[int]
    packed_length: int


def packed_sequence(height: int, width: int, grid: Grid, side: int) -> list[int]:
    """Return an image's unpruned sequence as tile·N + token, or NEWLINE (transformers' `pack_image_features`)."""
    tokens_per_tile = side * side
    crops = tokens_per_tile + np.arange(grid[0] * grid[1] * tokens_per_tile).reshape(*grid, side, side)
    rows = crops.transpose(0, 2, 1, 3).reshape(grid[0] * side, grid[1] * side)
    rows = _unpad(rows, height, width)
    sequence = list(range(tokens_per_tile))
    for row in rows:
        sequence += [*map(int, row), NEWLINE]
    return sequence


def _unpad(rows: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    grid_height, grid_width = rows.shape
    if width / height > grid_width / grid_height:
        pad = (grid_height - int(round(height * (grid_width / width), 7))) // 2
        return rows[pad : grid_height - pad]
    pad = (grid_width - int(round(width * (grid_height / height), 7))) // 2
    return rows[:, pad : grid_width - pad]


def crops_under_thumbnail(height: int, width: int, grid: Grid, side: int) -> NDArray[np.int64]:
    """Return for each token of the thumbnail (N,) the tile whose cell its centre lies in."""
    tiles = 1 + np.arange(grid[0] * grid[1]).reshape(grid)
    rows = _unpad(tiles.repeat(side, axis=0).repeat(side, axis=1), height, width)
    if rows.size == 0:
        return np.zeros(side * side, np.int64)
    at = [[int((Fraction(2 * i + 1, 2 * side)) * length) for i in range(side)] for length in rows.shape]
    return rows[np.ix_(*at)].reshape(-1)


def scaled(scores: Floats) -> Floats:
    """Scale scores to 0..1; 0 where all are equal."""
    if scores.size == 0 or scores.max() == scores.min():
        return np.zeros_like(scores)
    result: Floats = (scores - scores.min()) / (scores.max() - scores.min())
    return result


def integer_weights(weights: list[np.float32]) -> list[int]:
    """Quantise region weights to 1..WEIGHT_LEVELS, the largest becoming WEIGHT_LEVELS."""
    largest = max(weights)
    if largest <= 0:
        return [WEIGHT_LEVELS] * len(weights)
    return [max(1, int(np.floor(w / largest * np.float32(WEIGHT_LEVELS) + np.float32(0.5)))) for w in weights]


def divide(budget: int, weights: list[int], capacity: list[int]) -> list[int]:
    """Divide a budget in proportion to weights, clamp to the capacities, hand out again; largest remainder last."""
    given = [0] * len(weights)
    open_regions = set(range(len(weights)))
    rest = min(budget, sum(capacity))
    while True:
        total_weight = sum(weights[t] for t in open_regions)
        full = {t for t in open_regions if Fraction(rest * weights[t], total_weight) >= capacity[t]}
        if not full:
            break
        for t in full:
            given[t] = capacity[t]
            rest -= capacity[t]
        open_regions -= full
    if open_regions:
        shares = {t: Fraction(rest * weights[t], total_weight) for t in open_regions}
        for t, share in shares.items():
            given[t] = int(share)
        left = rest - sum(int(share) for share in shares.values())
        for t in sorted(open_regions, key=lambda t: (int(shares[t]) - shares[t], t))[:left]:
            given[t] += 1
    return given


def adaptive_alpha(
    schedule: Schedule, image_size: tuple[int, int], grid: Grid, saliency: Floats, relevance: Floats
) -> float:
    """Return the α of `--alpha auto`: how few tokens hold the relevance, against how few hold the saliency.

    Args:
        schedule: static sizes.
        image_size: height and width in pixels.
        grid: rows and columns of the crop grid.
        saliency: (T, N) token saliency b.
        relevance: (T, N) instruction relevance c.
    """
    sources = sorted(s for s in packed_sequence(*image_size, grid, schedule.side) if s != NEWLINE)
    tiles = np.array(sources) // schedule.tokens_per_tile
    salient = [scaled(saliency.reshape(-1)[sources][tiles == t]) for t in np.unique(tiles)]
    peaks = [_peakedness(np.concatenate(salient)), _peakedness(scaled(relevance.reshape(-1)[sources]))]
    return peaks[1] / sum(peaks) if any(peaks) else 0.5


def _peakedness(scores: Floats) -> float:
    """Return 1 less the share of tokens that would hold the same scores in equal parts (participation ratio)."""
    shares = scores.astype(np.float64)
    if not shares.any():
        return 0.0
    shares /= shares.sum()
    return 1 - 1 / (len(shares) * float(shares @ shares))


def keep_tokens(
    schedule: Schedule,
    image_size: tuple[int, int],
    grid: Grid,
    saliency: Floats,
    region_weights: Floats,
    relevance: Floats | None,
    alpha: float,
) -> Kept:
    """Choose the tokens of one image.

    Args:
        schedule: level budgets and static sizes.
        image_size: height and width in pixels.
        grid: rows and columns of the crop grid.
        saliency: (T, N) token saliency b.
        region_weights: (T,) region saliency w; the thumbnail's counts only where it is a region.
        relevance: (T, N) instruction relevance c, or None without an instruction.
        alpha: weight of the relevance.
    """
    tokens_per_tile = schedule.tokens_per_tile
    sequence = packed_sequence(*image_size, grid, schedule.side)
    real: list[list[int]] = [[] for _ in range(schedule.num_tiles)]
    for source in sorted(s for s in sequence if s != NEWLINE):
        real[source // tokens_per_tile].append(source % tokens_per_tile)

    first = 0 if schedule.thumbnail == "as_region" else 1
    regions = [t for t in range(first, schedule.num_tiles) if real[t]]
    budgets = [schedule.levels.thumbnail] + [0] * (schedule.num_tiles - 1)
    if regions:
        weights = integer_weights([region_weights[t] for t in regions])
        shares = divide(schedule.levels.crops, weights, [len(real[t]) for t in regions])
        for t, share in zip(regions, shares, strict=True):
            budgets[t] = share

    image_relevance: dict[int, np.float32] = {}
    if relevance is not None:
        sources = [s for s in sequence if s != NEWLINE]
        image_relevance = dict(zip(sources, scaled(relevance.reshape(-1)[sources]), strict=True))

    kept: set[int] = set()
    for t, tokens in enumerate(real):
        scores = scaled(saliency[t, tokens])
        if relevance is not None:
            weight = np.float32(alpha)
            top_down = np.array([image_relevance[t * tokens_per_tile + j] for j in tokens], dtype=np.float32)
            scores = (np.float32(1) - weight) * scores + weight * top_down
        best = sorted(range(len(tokens)), key=lambda i: (-scores[i], i))[: budgets[t]]
        kept.update(t * tokens_per_tile + tokens[i] for i in best)

    positions = [
        position
        for position, source in enumerate(sequence)
        if (schedule.newline == "keep" if source == NEWLINE else source in kept)
    ]
    return Kept(
        positions=positions,
        sources=[sequence[position] for position in positions],
        tile_budgets=budgets,
        packed_length=len(sequence),
    )
