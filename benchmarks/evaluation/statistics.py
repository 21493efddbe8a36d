"""How sure an accuracy is, and a difference of two, when several questions are about one image.

Such questions succeed and fail together, so images are what is drawn at random, not questions: the cluster bootstrap
(Davison and Hinkley 1997, section 3.8), percentiles of `RESAMPLES` draws. It says nothing where there is nothing to
resample, so that two cases are computed otherwise:

- one question about each image, each right or wrong: Wilson's interval (1927);
- the same mean for each image (all right, all wrong, no difference anywhere): Wilson's bound for an event that was not
  seen in any of n images says how many of all images may be otherwise, and those may be anything in the range. For all
  right and all wrong this is Wilson's interval over images.

With fewer than `FEW_IMAGES` images percentile intervals are too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
FEW_IMAGES = 30
CONFIDENCE = 0.95
Z = 1.959963984540054
"""Quantile of the normal distribution for `CONFIDENCE`."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class Resampler:
    """The same draws of images for every interval of an evaluation; of fixed seed, so that numbers repeat.

    Args:
        images: the image of each case. The draws take 8000 bytes for each different one.
        seed: of the draws.
    """

    def __init__(self, images: Sequence[str], *, seed: int = 0) -> None:
        names, self._image = np.unique(np.array(images), return_inverse=True)
        self._cases: NDArray[np.int64] = np.bincount(self._image)  # (images,) how many cases each has
        count, rng = len(names), np.random.default_rng(seed)
        self._draws = np.empty((RESAMPLES, count), np.float32)  # how often each image is drawn
        for row in self._draws:
            row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
        self._draw_sizes = self._draws @ self._cases.astype(np.float32)  # (RESAMPLES,) cases of each draw

    def accuracy(self, scores: Scores) -> Interval:
        """Return the mean score of all cases with its interval.

        Args:
            scores: of each case, 0 to 1.
        """
        if self._cases.max() == 1 and np.isin(scores, (0.0, 1.0)).all():
            return wilson(float(scores.mean()), len(scores))
        return self._interval(scores, lowest=0.0)

    def difference(self, scores: Scores, others: Scores) -> Interval:
        """Return the mean of one method's scores minus another's, with its interval.

        Args:
            scores: of each case, 0 to 1.
            others: of each case, by the other method.
        """
        return self._interval(scores - others, lowest=-1.0)

    def _interval(self, values: Scores, lowest: float) -> Interval:
        sums = np.bincount(self._image, weights=values)  # (images,)
        mean = float(sums.sum() / self._cases.sum())
        if np.ptp(sums / self._cases) < 1e-9:
            share = 1 - wilson(1.0, len(sums)).low
            return Interval(mean=mean, low=mean - share * (mean - lowest), high=mean + share * (1 - mean))
        means = (self._draws @ sums.astype(np.float32)) / self._draw_sizes  # (RESAMPLES,)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(means, (tail, 1 - tail))
        # single precision may step over the range by a rounding
        return Interval(mean=mean, low=max(lowest, float(low)), high=min(1.0, float(high)))


def wilson(mean: float, count: int) -> Interval:
    """Return Wilson's score interval of a share.

    Args:
        mean: the share seen, 0 to 1.
        count: of how many independent observations.
    """
    shrink = 1 + Z**2 / count
    middle = (mean + Z**2 / (2 * count)) / shrink
    half = Z * sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2)) / shrink
    return Interval(mean=mean, low=max(0.0, middle - half), high=min(1.0, middle + half))
