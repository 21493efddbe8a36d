"""What a backend must offer: graphs that run on named tensors, which may stay on the device between runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptp.bundle.manifest import GraphSpec, TensorSpec

Array = NDArray[Any]

DTYPES: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "bool": np.bool_,
}
"""The manifest's element types."""


class DeviceTensor(Protocol):
    """A tensor that a graph returned; it stays where the graph ran until someone asks for it."""

    def numpy(self) -> Array:
        """Return the values on the host."""
        ...


class Graph(Protocol):
    """A loaded graph. Several threads may run it at once: a run leaves nothing behind in it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, element types and shapes of the inputs."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, element types and shapes of the outputs."""
        ...

    def run(self, feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        """Run the graph on every one of its inputs and return all of its outputs by name.

        Raises:
            BackendError: the backend failed, or a value does not fit its input.
        """
        ...


LoadGraph = Callable[[Path, GraphSpec], Graph]
"""Loads a graph's file and refuses it unless its inputs and outputs are those of the specification."""
