"""Two steps that methods have in common: divide a budget, keep the best."""

from collections.abc import Sequence

import numpy as np

from ptp.benchmarks.methods.view import Floats, Ints
from ptp.ptp_graph.reference import divide

WEIGHT_LEVELS = 2**30


def share(budget: int, weights: Sequence[float] | Floats | Ints, capacity: Sequence[int]) -> list[int]:
    """Divide exactly min(budget, Σ capacity) in proportion to weights of at least 0.

    Nobody gets more than its capacity; what it cannot hold goes to the others in the same proportion, remainders to
    the largest fractions. A weight of 0 gets something only when all others are full.
    """
    given = [0] * len(capacity)
    largest = max(weights, default=0)
    for wanted in (True, False):
        group = [i for i, weight in enumerate(weights) if (weight > 0) == wanted]
        levels = [max(1, round(weights[i] / largest * WEIGHT_LEVELS)) if wanted else 1 for i in group]
        shares = divide(budget - sum(given), levels, [capacity[i] for i in group])
        for i, part in zip(group, shares, strict=True):
            given[i] = part
    return given


def top(positions: Ints, scores: Floats, count: int) -> Ints:
    """Return the positions with the highest scores, ascending; of equal scores the lower position."""
    best: Ints = np.sort(positions[np.lexsort((positions, -scores))[:count]])
    return best
