"""What a backend must offer: graphs that run on named tensors, which may stay on the device between runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptp.bundle import Bundle
from ptp.bundle.manifest import GraphSpec, TensorSpec
from ptp.errors import BackendError

Array = NDArray[Any]
Shape = tuple[int, ...]

DTYPES: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "bool": np.bool_,
}
"""The manifest's element types."""


CPU_PREFILL_CHUNK = 512
"""Tokens of a prompt that a CPU computes at a time: what an operator writes is still in its cache for the next one.

It also spares most products that the causal mask drops. `benchmarks/decoder_cache.py` compares it with all at once."""


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

    @property
    def largest(self) -> Mapping[str, Shape]:
        """Largest shapes of the inputs that it was built for; empty where nothing but memory is a limit."""
        ...

    @property
    def prefill_chunk(self) -> int | None:
        """Tokens of a prompt that a decoder takes at a time for speed; None for all at once."""
        ...

    def run(self, feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        """Run the graph on every one of its inputs and return all of its outputs by name.

        Raises:
            BackendError: the backend failed, or a value does not fit its input.
        """
        ...


LoadGraph = Callable[[Bundle, GraphSpec], Graph]
"""Loads a graph of a bundle and refuses it unless its inputs and outputs are those of the specification."""


def check_feeds(file: str, inputs: Iterable[TensorSpec], feeds: Mapping[str, Any]) -> None:
    """Refuse values that do not fit a graph's inputs.

    Args:
        file: of the graph, for the message.
        inputs: of the graph.
        feeds: arrays, or what else has a `dtype` and a `shape`.

    Raises:
        BackendError: all inputs that are missing, extra, or of another element type or shape.
    """
    wanted = {spec.name: spec for spec in inputs}
    problems = _differing_names(feeds, wanted)
    problems += [
        f"{name} is {_text(feeds[name].dtype.name, feeds[name].shape)} instead of {_describe(spec)}"
        for name, spec in wanted.items()
        if name in feeds
        and (feeds[name].dtype.name != np.dtype(DTYPES[spec.dtype]).name or not fits(feeds[name].shape, spec))
    ]
    if problems:
        raise BackendError(f"the values do not fit the inputs of {file}", got=", ".join(problems))


def fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Return whether a shape is one that a tensor may have; a dimension that is a name may be of any size."""
    return len(shape) == len(spec.shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(shape, spec.shape, strict=True)
    )


def settled(outputs: Iterable[TensorSpec], expected: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return outputs whose open dimensions are taken to be the expected sizes, where those are fixed.

    For libraries that infer the shapes of outputs anew and may know less than the file says; they compare at each run.
    """
    wanted = {spec.name: spec for spec in expected}
    return tuple(
        found.model_copy(
            update={
                "shape": tuple(
                    size if isinstance(size, int) or isinstance(fixed, str) else fixed
                    for size, fixed in zip(found.shape, wanted[found.name].shape, strict=True)
                )
            }
        )
        if found.name in wanted and len(found.shape) == len(wanted[found.name].shape)
        else found
        for found in outputs
    )


def refuse_difference(
    path: Path,
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    expected: GraphSpec,
    *,
    of: str = "the manifest",
    do: str = "export the bundle again",
) -> None:
    """Refuse a file whose inputs and outputs are not those of its description.

    Args:
        path: the file.
        inputs: its own inputs.
        outputs: its own outputs.
        expected: the description.
        of: where the description is from.
        do: what repairs the difference.

    Raises:
        BackendError: all tensors that are missing, extra, or of another element type or shape.
    """
    for what, got, specs in (("inputs", inputs, expected.inputs), ("outputs", outputs, expected.outputs)):
        found, wanted = {x.name: x for x in got}, {x.name: x for x in specs}
        problems = _differing_names(found, wanted)
        problems += [
            f"{name} is {_describe(found[name])} instead of {_describe(spec)}"
            for name, spec in wanted.items()
            if name in found and _describe(found[name]) != _describe(spec)
        ]
        if problems:
            raise BackendError(f"the {what} of {path} are not those of {of}", got=", ".join(problems), do=do)


def _differing_names(found: Iterable[str], wanted: Iterable[str]) -> list[str]:
    found, wanted = list(found), list(wanted)
    missing = [f"{name} missing" for name in wanted if name not in found]
    return missing + [f"{name} extra" for name in found if name not in wanted]


def _describe(spec: TensorSpec) -> str:
    return _text(spec.dtype, spec.shape)


def _text(dtype: str, shape: Sequence[int | str]) -> str:
    """Return type and shape, every dimension that is named at run time as '?'."""
    return f"{dtype} [{', '.join(str(size) if isinstance(size, int) else '?' for size in shape)}]"
