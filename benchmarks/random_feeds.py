"""Inputs for a graph whose time is to be measured; in a static graph no value changes it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ptp.bundle.manifest import TensorSpec


def random_feeds(
    specs: Iterable[TensorSpec], fixed: Mapping[str, Any], sizes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return a value for each input: the fixed ones, true masks, and normal numbers of seed 0.

    Args:
        specs: the graph's inputs.
        fixed: values by name; inputs that are positions, sizes or counts must be among them.
        sizes: sizes of the dimensions that are named.
    """
    random = np.random.default_rng(0)

    def feed(spec: TensorSpec) -> Any:
        if spec.name in fixed:
            value = fixed[spec.name]
            return value if isinstance(value, np.ndarray) else np.array(value, spec.dtype)
        shape = [size if isinstance(size, int) else (sizes or {})[size] for size in spec.shape]
        return np.ones(shape, bool) if spec.dtype == "bool" else random.standard_normal(shape).astype(spec.dtype)

    return {spec.name: feed(spec) for spec in specs}
