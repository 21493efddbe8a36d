"""FasterVLM: [CLS] Attention is All You Need for Training-Free Visual Token Pruning (arXiv 2412.01818).

    score[t, j] = mean over heads of Attn(CLS → patch j) in the last vision block but one, of tile t
    kept of tile t = the ⌊budget / tiles⌋ highest scores

The paper's: [CLS] attention, top-k, before the language model. Its released code reads the block whose output LLaVA
takes (`vision_feature_layer` −2, so block 22 of 0 … 23) and keeps the same number of every tile.
Ours: only real tokens compete (theirs keeps padding); what a tile with little of the image cannot fill, and the
remainder of the division, go to the other tiles. `per_tile=False` ranks all tiles' tokens in one list instead, the
other way to read "re-rank the image tokens".
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ptp.benchmarks.methods.budget import share, top
from ptp.benchmarks.methods.view import Choice, View


@dataclass(frozen=True, kw_only=True)
class FasterVlm:
    """Keep the tokens that CLS attends to most.

    Args:
        layer: vision block; negative counts from the last.
        per_tile: the same number of every tile, or one ranking for the image.
    """

    name: str = "fastervlm"
    layer: int = -2
    per_tile: bool = True
    sees_question: ClassVar[bool] = False
    prunes_after: ClassVar[int] = 0

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Rank by CLS attention."""
        scores = view.cls(self.layer)
        groups = view.tiles if self.per_tile else [view.positions]
        budgets = share(budget, [1] * len(groups), [len(group) for group in groups])
        kept = [top(group, view.at(group, scores), k) for group, k in zip(groups, budgets, strict=True)]
        return Choice(positions=np.sort(np.concatenate(kept)))
