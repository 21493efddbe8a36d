"""α, the weight of the question: a number, or left to the graph."""

from typing import Literal

from ptp.budgets import parse_fraction
from ptp.bundle.manifest import Alpha
from ptp.errors import ConfigError

AUTO: Literal["auto"] = "auto"
"""Computed in the graph for each question (docs/algorithm.md, fusion)."""

AUTO_INPUT = -1.0
"""What the graph's input `alpha` gets for AUTO; every negative number means it."""


def check_alpha(alpha: Alpha) -> Alpha:
    """Return a weight of the question if it is one.

    Raises:
        ConfigError: it is neither 0 to 1 nor `auto`.
    """
    if alpha != AUTO and (isinstance(alpha, str) or not 0 <= alpha <= 1):
        raise ConfigError("alpha is the weight of the question", got=alpha, expected=f"0 to 1, or {AUTO}")
    return alpha


def parse_alpha(text: str | None) -> Alpha | None:
    """Return what a user wrote for `--alpha`.

    Raises:
        ConfigError: it is neither 0 to 1 nor `auto`.
    """
    if text is None or text == AUTO:
        return text
    return check_alpha(float(parse_fraction(text, "--alpha")))
