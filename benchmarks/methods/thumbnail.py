"""Thumbnail only: the whole image once, at low resolution, and no crops.

    budget ≤ N: an even lattice of the thumbnail; above: all N of it and an even lattice of the crops

No paper. What the thumbnail cannot hold goes to the crops, so that the row stays comparable with the others of a
table; ask for at most N tokens to see what the thumbnail alone is worth.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ptp.benchmarks.methods.uniform_grid import even_crops, even_thumbnail
from ptp.benchmarks.methods.view import Choice, View


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """Keep the thumbnail first."""

    name: str = "thumbnail"
    sees_question: ClassVar[bool] = False
    prunes_after: ClassVar[int] = 0

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Fill the thumbnail, then the crops."""
        count = min(budget, len(view.positions))
        own = min(count, view.side**2)
        return Choice(positions=np.concatenate([even_thumbnail(view, own), even_crops(view, count - own)]))
