"""HiRED: Attention-Guided Token Dropping for … High-Resolution Vision-Language Models (arXiv 2408.10945).

    thumbnail: ⌊α · budget⌋ tokens;  crop t: the rest in proportion to S[t]
    S[t] = how many of the thumbnail's top ⌊(1 − α) · N⌋ tokens by CLS attention of an early block lie in crop t
    inside every tile: the highest CLS attention of a late block

The paper's: both phases, heads summed. From its released code: α = 0.5, ⌊(1 − α) · N⌋, the first block (0) and the
last but one (22 of 0 … 23).
Ours: "lie in crop t" is taken in two dimensions and of the unpadded image; the released code cuts the flattened
thumbnail into equal runs, which for a 2 × 2 grid are stripes. Padding does not compete; what a tile cannot hold and
what rounding leaves go to the others (theirs returns fewer tokens). Theirs also drops newline tokens; here that is
the caller's.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ptp.benchmarks.methods.budget import share, top
from ptp.benchmarks.methods.view import Choice, View
from ptp.ptp_graph.reference import crops_under_thumbnail


@dataclass(frozen=True, kw_only=True)
class Hired:
    """Budget by early attention, selection by late attention.

    Args:
        alpha: the thumbnail's part of the budget.
        early: vision block that divides the budget; negative counts from the last.
        late: vision block that selects.
    """

    name: str = "hired"
    alpha: float = 0.5
    early: int = 0
    late: int = -2
    sees_question: ClassVar[bool] = False
    prunes_after: ClassVar[int] = 0

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Divide, then select."""
        kept = [
            top(group, view.at(group, view.cls(self.late)), k)
            for group, k in zip(view.tiles, self.budgets(view, budget), strict=True)
        ]
        return Choice(positions=np.sort(np.concatenate(kept)))

    def budgets(self, view: View, budget: int) -> list[int]:
        """Return how many tokens each tile keeps."""
        capacity = [len(group) for group in view.tiles]
        own = min(int(self.alpha * budget), capacity[0])
        own = max(own, min(budget, sum(capacity)) - sum(capacity[1:]))  # what the crops cannot hold
        salient = top(np.arange(view.side**2), view.cls(self.early)[0], int((1 - self.alpha) * view.side**2))
        cell = crops_under_thumbnail(*view.image_size, view.grid, view.side)
        content = np.bincount(cell[salient], minlength=view.num_tiles)[1:]
        return [own, *share(budget - own, content, capacity[1:])]
