"""α, the weight of the question: a number, or left to the graph."""

import math
from typing import Any, Literal

from ptp.bundle.manifest import Alpha, Pruning
from ptp.errors import ConfigError

AUTO: Literal["auto"] = "auto"
"""Computed in the graph for each question (docs/algorithm.md, fusion)."""

AUTO_INPUT = -1.0
"""What the graph's input `alpha` gets for AUTO; every negative number means it."""


def parse_alpha(value: Any) -> Alpha:
    """Return a weight of the question from a number, or from what a user wrote.

    Raises:
        ConfigError: it is neither 0 to 1 nor `auto`.
    """
    if isinstance(value, str) and value == AUTO:
        return AUTO
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ConfigError("alpha is the weight of the question", got=repr(value), expected=f"0 to 1, or {AUTO}")
    return number


def alpha_input(alpha: Alpha | str | None, pruning: Pruning) -> float:
    """Return what the vision graph's input `alpha` gets, the bundle's own weight of the question if None.

    Raises:
        ConfigError: it is not 0 to 1 or `auto`, or is given although the bundle does not look at the question.
    """
    if alpha is not None and pruning.instruction == "none":
        raise ConfigError(
            "alpha weighs the question, which this bundle does not look at",
            do="leave alpha out or export with --instruction attention",
        )
    weight = pruning.alpha if alpha is None else parse_alpha(alpha)
    return AUTO_INPUT if weight == AUTO else weight
