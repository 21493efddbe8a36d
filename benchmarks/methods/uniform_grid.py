"""Uniform grid: tokens spread evenly over the rows and columns of the image, whatever it shows.

    thumbnail and crops share the budget by their real tokens;
    of R × C tokens, k are kept in r ≈ √(k · R / C) evenly spaced rows, with evenly spaced columns in each

No paper; a low-resolution picture of the same length. The crops count as one area, without padding and without tile
borders.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import ClassVar

import numpy as np

from ptp.benchmarks.methods.budget import share
from ptp.benchmarks.methods.view import Choice, Ints, View


@dataclass(frozen=True, kw_only=True)
class UniformGrid:
    """Keep an even lattice of the thumbnail and one of the crops."""

    name: str = "uniform"
    sees_question: ClassVar[bool] = False
    prunes_after: ClassVar[int] = 0

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Share the budget, then spread each part."""
        thumbnail, crops = view.side**2, view.crop_area[0] * view.crop_area[1]
        own, others = share(budget, [thumbnail, crops], [thumbnail, crops])
        return Choice(positions=np.concatenate([even_thumbnail(view, own), even_crops(view, others)]))


def even_thumbnail(view: View, count: int) -> Ints:
    """Return positions spread over the thumbnail."""
    return view.positions[: view.side**2][even_lattice(view.side, view.side, count)]


def even_crops(view: View, count: int) -> Ints:
    """Return positions spread over the unpadded area of the crops."""
    return view.positions[view.side**2 :][even_lattice(*view.crop_area, count)]


def even_lattice(rows: int, columns: int, count: int) -> Ints:
    """Return `count` evenly spread cells of a table in raster order, ascending; count ≤ rows · columns."""
    if count == 0:
        return np.zeros(0, np.int64)
    used = min(rows, count, max(ceil(count / columns), round(sqrt(count * rows / columns))))
    edges = np.arange(used + 1) * count // used  # rows differ by one token at most, the fuller ones evenly spaced
    cells = [
        row * columns + evenly(columns, int(kept)) for row, kept in zip(evenly(rows, used), np.diff(edges), strict=True)
    ]
    return np.concatenate(cells)


def evenly(length: int, count: int) -> Ints:
    """Return the indices under the middles of `count` equal parts of a length; count ≤ length."""
    return (2 * np.arange(count) + 1) * length // (2 * count)
