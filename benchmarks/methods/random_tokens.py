"""Random tokens: what any method has to beat.

    kept = a uniformly random subset of the image's real visual tokens

No paper. The seed is the caller's: one seed per image and question, or several for an interval.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ptp.benchmarks.methods.view import Choice, View


@dataclass(frozen=True, kw_only=True)
class RandomTokens:
    """Keep a random subset."""

    name: str = "random"
    sees_question: ClassVar[bool] = False
    prunes_after: ClassVar[int] = 0

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Draw without replacement."""
        count = min(budget, len(view.positions))
        drawn = np.random.default_rng(seed).choice(view.positions, count, replace=False)
        return Choice(positions=np.sort(drawn))
