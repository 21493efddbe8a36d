"""DART: Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More (arXiv 2502.11494).

    pivots: the 4 visual and the 4 text tokens with the largest Σ|x|, the visual ones kept
    for each pivot in turn: keep the ⌈missing / pivots left⌉ remaining visual tokens with the smallest cosine to it

The paper's: few pivots, duplicates of them dropped by cosine; pivots by the L1 norm of keys, cosines of the hidden
states after the language model's second block, the same number for every pivot.
This is the form that TensorRT Edge-LLM ships: norms and cosines of the input embeddings, so that pruning needs
nothing of the language model, 4 + 4 pivots, and a division that meets the budget exactly. Its text pivots are any of
the prompt's tokens.
Ours: newline rows are no candidates (Edge-LLM has no such model). With `text_pivots=0` the prompt takes no part.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ptp.benchmarks.methods.view import Choice, Floats, Ints, View


@dataclass(frozen=True, kw_only=True)
class Dart:
    """Keep what resembles the pivots least.

    Args:
        image_pivots: visual tokens that duplicates are measured against.
        text_pivots: the same of the prompt.
    """

    name: str = "dart"
    image_pivots: int = 4
    text_pivots: int = 4
    prunes_after: ClassVar[int] = 0

    @property
    def sees_question(self) -> bool:
        """Text pivots come from the prompt."""
        return self.text_pivots > 0

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Grow the kept set from the pivots."""
        count = min(budget, len(view.positions))
        visual = view.features[view.positions].astype(np.float64)
        pivots = largest(visual, min(self.image_pivots, count))
        kept = np.zeros(len(visual), bool)
        kept[pivots] = True
        rows = visual[pivots]
        if self.text_pivots:
            text = view.need("text_embeds").astype(np.float64)
            rows = np.concatenate([rows, text[largest(text, self.text_pivots)]])
        for turn, pivot in enumerate(rows):
            quota = -(-(count - kept.sum()) // (len(rows) - turn))
            candidates = np.flatnonzero(~kept)
            kept[candidates[np.argsort(cosines(visual[candidates], pivot), kind="stable")[:quota]]] = True
        return Choice(positions=view.positions[kept])


def largest(rows: Floats, count: int) -> Ints:
    """Return the rows with the largest L1 norm, largest first; of equal ones the earlier."""
    return np.argsort(-np.abs(rows).sum(axis=1), kind="stable")[:count]


def cosines(rows: Floats, pivot: Floats) -> Floats:
    """Return each row's cosine with the pivot, 0 for zeros."""
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(pivot)
    result: Floats = rows @ pivot / np.maximum(lengths, 1e-8)
    return result
