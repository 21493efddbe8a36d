"""GlobalCom²: Global Compression Commander: … for High-Resolution Large Vision-Language Models (arXiv 2501.05179).

    thumbnail: R · N tokens by its own CLS scores s
    crop t:    R · (1 + σ[t] − 1/n) of its tokens;  σ = softmax over the n crops of (Σ of s in the crop's cell) / τ
    score in a crop: α · ĝ + (1 − α) · l̂;  g: the thumbnail's scores enlarged to the crops, l: the crop's own

The paper's: all three lines, α = 0.5, the last vision block; the released code: τ = 10, bilinear enlarging to the
unpadded area, ĝ and l̂ scaled to length 1 in each crop, and cells that cut the thumbnail into equal parts.
The released code takes CLS scores *before* the softmax (q · k / √d, mean over the heads), and τ = 10 fits their large
sums. Attention sums to 1, so that τ = 10 leaves σ within a tenth of equal. `softmax=False` is the released form and
the default; `softmax=True` takes the attention itself.
Ours: R is whatever makes the total exact, by largest remainders, padding and full crops taken into account.
`layer=-2` reads the last block that features come from, for encoders whose last block nothing trained.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ptp.benchmarks.methods.budget import share, top
from ptp.benchmarks.methods.view import Choice, Floats, View


@dataclass(frozen=True, kw_only=True)
class GlobalCom2:
    """The thumbnail commands how much and what is kept of the crops.

    Args:
        alpha: weight of the thumbnail's scores inside a crop.
        temperature: τ.
        softmax: take attention instead of what stands before its softmax.
        layer: vision block; negative counts from the last.
    """

    name: str = "globalcom2"
    alpha: float = 0.5
    temperature: float = 10.0
    softmax: bool = False
    layer: int = -1
    sees_question: ClassVar[bool] = False
    prunes_after: ClassVar[int] = 0

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Divide by the thumbnail's scores, then select by both."""
        scores = view.cls(self.layer) if self.softmax else view.logits(self.layer)
        thumbnail = scores[0].reshape(view.side, view.side)
        budgets = self.budgets(view, budget, thumbnail)
        guidance = np.zeros(len(view.sequence))
        guidance[view.positions[view.side**2 :]] = enlarged(thumbnail, *view.crop_area).reshape(-1)
        kept = [top(view.tiles[0], scores[0], budgets[0])]
        for group, k in zip(view.tiles[1:], budgets[1:], strict=True):
            local = unit(view.at(group, scores))
            kept.append(top(group, self.alpha * unit(guidance[group]) + (1 - self.alpha) * local, k))
        return Choice(positions=np.sort(np.concatenate(kept)))

    def budgets(self, view: View, budget: int, thumbnail: Floats) -> list[int]:
        """Return how many tokens each tile keeps."""
        rows, columns = view.grid
        at = np.arange(view.side)
        content = np.zeros(view.grid)
        np.add.at(content, np.ix_(at * rows // view.side, at * columns // view.side), thumbnail)
        exponent = (content.reshape(-1) - content.max()) / self.temperature
        sigma = np.exp(exponent) / np.exp(exponent).sum()
        capacity = [len(group) for group in view.tiles]
        retention = np.array([1, *(1 + sigma - 1 / len(sigma))])
        return share(budget, retention * capacity, capacity)


def enlarged(scores: Floats, rows: int, columns: int) -> Floats:
    """Return scores of a table bilinearly at the cell centres of another, borders extended."""
    for axis, length in enumerate((rows, columns)):
        size = scores.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * size / max(length, 1) - 0.5, 0, size - 1)
        low = np.floor(at).astype(np.int64)
        part = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        high = np.minimum(low + 1, size - 1)
        scores = (1 - part) * scores.take(low, axis) + part * scores.take(high, axis)
    return scores


def unit(scores: Floats) -> Floats:
    """Return scores scaled to Euclidean length 1; zeros stay zeros."""
    scaled: Floats = scores / max(float(np.linalg.norm(scores)), 1e-12)
    return scaled
