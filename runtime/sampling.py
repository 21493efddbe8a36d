"""How the next token is chosen and when generation ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ptp.bundle.manifest import MAX_DIMENSION
from ptp.errors import BackendError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is generated.

    Args:
        max_new_tokens: most tokens generated, at least 1.
        temperature: 0 takes the most likely token, larger values flatten the distribution.
        top_p: sample among the most likely tokens whose probabilities sum to this, 0 < top_p ≤ 1.
        seed: of the random numbers, at least 0; None draws a new one. Without effect at temperature 0.
        stop: texts that end the answer; they are not part of it.

    Raises:
        ConfigError: a value is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= MAX_DIMENSION:
            raise ConfigError(
                "max_new_tokens is out of range", got=self.max_new_tokens, expected=f"1 to {MAX_DIMENSION}"
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError("temperature is out of range", got=self.temperature, expected="0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p is out of range", got=self.top_p, expected="0 < top_p ≤ 1")
        if self.seed is not None and self.seed < 0:
            raise ConfigError("seed is out of range", got=self.seed, expected="0 or more")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError("stop must be texts that are not empty", got=repr(self.stop), expected="('###',)")


class SamplingOptions(TypedDict, total=False):
    """The same as keyword arguments; what is left out has the default of `Sampling`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]


def unusable_logits() -> BackendError:
    """Return the error of logits that hold no usable number."""
    return BackendError(
        "the decoder returned numbers that are not finite", do="export with --dtype fp32 or report the model"
    )


class Sampler:
    """Draws the tokens of one answer.

    Args:
        sampling: the options; the temperature is above 0.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Return the next token for logits of shape (V,).

        Raises:
            BackendError: the logits hold no usable number.
        """
        if np.isnan(logits).any() or not np.isfinite(logits.max()):
            raise unusable_logits()
        probabilities = softmax(warp(logits, self._sampling.temperature, self._sampling.top_p).astype(np.float64))
        return int(self._random.choice(len(logits), p=probabilities))


def warp(logits: NDArray[np.float32], temperature: float, top_p: float) -> NDArray[np.float32]:
    """Return logits (V,) after temperature and top-p, −∞ where top-p excludes a token; as transformers' warpers do."""
    # the shift keeps the largest at 0; any temperature above 0 is one in float64, and may overflow the rest to −∞
    with np.errstate(over="ignore"):
        warped: NDArray[np.float32] = ((logits - logits.max()).astype(np.float64) / temperature).astype(np.float32)
    if top_p < 1:
        order = np.argsort(warped, kind="stable")
        excluded = softmax(warped[order]).cumsum() <= 1 - top_p
        excluded[-1] = False
        warped[order[excluded]] = -np.inf
    return warped


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the softmax of (V,) in its own precision."""
    exponentials = np.exp(logits - logits.max())
    probabilities: NDArray[np.floating[Any]] = exponentials / exponentials.sum()
    return probabilities


class StopText:
    """Holds text back while it could be the beginning of a stop string.

    Args:
        stop: the stop strings.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Return the text that may be shown; `stopped` tells whether a stop string was met, which ends the text."""
        text = self._held + piece
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((self._overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return the text that was held back and turned out to be none of the stop strings."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Return the length of the longest end of `text` with which `stop` begins."""
        return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
