"""How far what a graph returned is from what was recorded: values by differences, integers by how many are equal."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pairs = Sequence[tuple[Array, Array]]
"""For each image, what was found and what was recorded."""


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """Of values, over all images.

    Attributes:
        output: name of the graph's output.
        max_difference: largest |found − recorded|; infinite if something is not finite.
        mean_difference: mean of it, of the worst image.
        cosine: of an image's values as one vector, of the worst image.
        relative: the difference as the table of tolerances measures it, of the worst image.
        allowed: largest `relative` that is in order.
    """

    output: str
    max_difference: float
    mean_difference: float
    cosine: float
    relative: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the output is in order."""
        return self.relative <= self.allowed

    def __str__(self) -> str:
        return f"{self.output} is off by {self.relative:.2g} of its size, and {self.allowed:g} is allowed"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of integers, over all images.

    Attributes:
        output: name of the graph's output.
        equal: how many are the same.
        total: how many were recorded.
        allowed: how many may differ.
    """

    output: str
    equal: int
    total: int
    allowed: int

    @property
    def agrees(self) -> bool:
        """Whether the output is in order."""
        return self.total - self.equal <= self.allowed

    def __str__(self) -> str:
        return f"{self.output} differs in {self.total - self.equal} of {self.total}, and {self.allowed} is allowed"


def compare_values(output: str, pairs: Pairs, distance: Callable[[Array, Array], float], allowed: float) -> Closeness:
    """Return how far values are from those recorded.

    Args:
        output: name of the graph's output.
        pairs: arrays; nothing is compared where those recorded are empty.
        distance: what `allowed` bounds.
        allowed: largest distance that is in order.
    """
    wide = [(_as_wide(found, recorded.shape), recorded.astype(np.float64)) for found, recorded in pairs]
    differences = [_difference(*pair) for pair in wide]
    return Closeness(
        output=output,
        max_difference=max(float(x.max(initial=0)) for x in differences),
        mean_difference=max(float(x.mean()) if x.size else 0.0 for x in differences),
        cosine=min(_cosine(*pair) for pair in wide),
        relative=max(distance(*pair) for pair in wide),
        allowed=allowed,
    )


def compare_integers(output: str, counts: Iterable[tuple[int, int]], share: float = 0.0) -> Agreement:
    """Return how many integers are those recorded.

    Args:
        output: name of the graph's output.
        counts: for each image, how many are equal, and how many were recorded.
        share: of those recorded, how many may differ.
    """
    equal, total = (int(sum(x)) for x in zip(*counts, strict=True))
    return Agreement(output=output, equal=equal, total=total, allowed=int(total * share))


def _as_wide(found: Array, shape: tuple[int, ...]) -> Array:
    """Return float64 values; no numbers where the shape is another one."""
    return found.astype(np.float64) if found.shape == shape else np.full(shape, np.nan)


def _difference(found: Array, recorded: Array) -> Array:
    return np.where(np.isfinite(found), np.abs(found - recorded), np.inf)


def _cosine(found: Array, recorded: Array) -> float:
    """Return the cosine of all values; 1 for equal ones, of length 0 or not, and 0 for such that are not finite."""
    if np.array_equal(found, recorded):
        return 1.0
    if not np.isfinite(found).all():
        return 0.0
    lengths = float(np.linalg.norm(found) * np.linalg.norm(recorded))
    return float(np.vdot(found, recorded)) / lengths if lengths else 0.0
