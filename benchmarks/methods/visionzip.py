"""VisionZip: Longer is Better but Not Necessary in Vision Language Models (arXiv 2412.04467).

    of a tile's k tokens, k − c are dominant: the highest CLS attention of the last vision block but one
    c = ⌊10/64 · k + ½⌋ are contextual: of targets evenly spaced among the rest, each other token joins the one whose
    key (mean over heads, same block) has the largest cosine with its own; contextual = target + mean of the joined

The paper's: all of it, before the projector, the same k in every tile; 54 + 10, 108 + 20 and 162 + 30 tokens are its
settings. The released code adds target and mean, so that a contextual token is about twice as long as others:
`merge="sum"`, the default. `"mean"` averages target and joined alike, as some ports do; `"none"` keeps the targets as
they are, which shows what merging is worth. Dominant tokens alone would be exactly FasterVLM, so there is no fourth
form.
Ours: a contextual token stands at its target's place (theirs follow the tile's dominant tokens, and those of crops
the whole image); theirs also keeps the CLS token, which has no place in the packed sequence, so one more patch is
kept; rounding c to the nearest. Padding neither competes nor is merged; what a tile cannot hold goes to the others.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ptp.benchmarks.methods.budget import share, top
from ptp.benchmarks.methods.view import Choice, Floats, Ints, View


@dataclass(frozen=True, kw_only=True)
class VisionZip:
    """Dominant tokens, and contextual ones that stand for the rest.

    Args:
        merge: how a target and the tokens that join it become one.
        layer: vision block whose attention decides; the keys are always those of the last but one.
    """

    name: str = "visionzip"
    merge: Literal["sum", "mean", "none"] = "sum"
    layer: int = -2
    sees_question: ClassVar[bool] = False
    prunes_after: ClassVar[int] = 0

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Select in each tile, then merge."""
        positions: list[Ints] = []
        changed: list[Ints] = []
        merged: list[Floats] = []
        budgets = share(budget, [1] * view.num_tiles, [len(group) for group in view.tiles])
        for group, k in zip(view.tiles, budgets, strict=True):
            contextual = (k * 10 + 32) // 64
            dominant = top(group, view.at(group, view.cls(self.layer)), k - contextual)
            rest = np.setdiff1d(group, dominant)
            targets = rest[:: max(1, len(rest) // max(contextual, 1))][:contextual]
            positions += [dominant, targets]
            if contextual and self.merge != "none":
                changed.append(targets)
                merged.append(self.merged(view, targets, np.setdiff1d(rest, targets)))
        kept = np.sort(np.concatenate(positions))
        if not changed:
            return Choice(positions=kept)
        features = view.features.copy()
        features[np.concatenate(changed)] = view.need("project")(np.concatenate(merged))
        return Choice(positions=kept, features=features[kept])

    def merged(self, view: View, targets: Ints, others: Ints) -> Floats:
        """Return what becomes of the targets when each other token joins one, (targets, D)."""
        keys = view.need("keys")
        joins = (unit_rows(view.at(others, keys)) @ unit_rows(view.at(targets, keys)).T).argmax(axis=1)
        hidden = view.at(targets, view.need("hidden")).astype(np.float64)
        sums = np.zeros_like(hidden)
        np.add.at(sums, joins, view.at(others, view.need("hidden")))
        counts = np.bincount(joins, minlength=len(targets))[:, None]
        if self.merge == "mean":
            return ((hidden + sums) / (1 + counts)).astype(np.float32)
        return (hidden + sums / np.maximum(counts, 1)).astype(np.float32)


def unit_rows(rows: Floats) -> Floats:
    """Return rows scaled to Euclidean length 1; zeros stay zeros."""
    scaled: Floats = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return scaled
