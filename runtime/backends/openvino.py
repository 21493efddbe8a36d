"""OpenVINO on the CPU, in float32 unless bfloat16 is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import openvino as ov

from ptp.bundle import Bundle
from ptp.bundle.manifest import Dtype, GraphSpec, TensorSpec
from ptp.errors import BackendError, ConfigError
from ptp.runtime.backends.base import (
    CPU_PREFILL_CHUNK,
    Array,
    DeviceTensor,
    LoadGraph,
    Shape,
    check_feeds,
    fits,
    refuse_difference,
    settled,
)

DEVICE = "CPU"

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""What users call the arithmetic, and what OpenVINO calls it; its own choice is bfloat16 wherever the CPU has it."""

EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Activations are not quantised. By default OpenVINO rounds those of quantised weights to 8 bits on CPUs with VNNI."""

ELEMENT_TYPES: dict[str, Dtype] = {
    "f32": "float32",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "boolean": "bool",
}


@dataclass(frozen=True)
class OpenVinoTensor:
    """A tensor in OpenVINO's memory (implements `DeviceTensor`); `numpy` is a view of it."""

    tensor: Any

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        dtype: np.dtype[Any] = self.tensor.element_type.to_dtype()
        return dtype

    @property
    def shape(self) -> Shape:
        """Shape."""
        return tuple(self.tensor.shape)

    def numpy(self) -> Array:
        """See `DeviceTensor.numpy`."""
        view: Array = self.tensor.data
        return view


class OpenVinoGraph:
    """A graph that OpenVINO compiled for the CPU (implements `Graph`).

    Args:
        path: the ONNX file.
        spec: what its inputs and outputs must be.
        precision: a key of `PRECISIONS`.
        threads: CPU threads, OpenVINO's choice if None.

    Raises:
        BackendError: the file cannot be loaded, or it differs from `spec`.
    """

    largest: Mapping[str, Shape] = MappingProxyType({})
    prefill_chunk = CPU_PREFILL_CHUNK

    def __init__(self, path: Path, spec: GraphSpec, *, precision: str = "fp32", threads: int | None = None) -> None:
        settings = EXACT | {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        core = ov.Core()
        try:
            model = core.read_model(path)
            self.inputs = tuple(_spec(port) for port in model.inputs)
            self.outputs = settled([_spec(port) for port in model.outputs], spec.outputs)
            refuse_difference(path, self.inputs, self.outputs, spec)
            self._model = core.compile_model(model, DEVICE, settings)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot load {path}", got=error) from error
        self._file = path.name

    def run(self, feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        """See `Graph.run`."""
        # arrays are read where they are, so they must outlive the run; what a run returned goes back in as it is
        values: dict[str, Any] = {
            name: np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x for name, x in feeds.items()
        }
        check_feeds(self._file, self.inputs, values)
        try:
            # one request for each run: its outputs are never overwritten, and threads do not meet
            request = self._model.create_infer_request()
            for name, value in values.items():
                request.set_tensor(name, value.tensor if isinstance(value, OpenVinoTensor) else _share(value))
            request.infer()
            outputs = {spec.name: OpenVinoTensor(request.get_tensor(spec.name)) for spec in self.outputs}
        except RuntimeError as error:
            raise BackendError("OpenVINO failed", got=error) from error
        for spec in self.outputs:
            if not fits(outputs[spec.name].shape, spec):
                raise BackendError(
                    f"OpenVINO computed another shape of {spec.name}", got=outputs[spec.name].shape, expected=spec.shape
                )
        return dict(outputs)


def loader(precision: str, *, threads: int | None) -> LoadGraph:
    """Return the function that loads graphs in OpenVINO.

    Raises:
        ConfigError: there is no such precision, or this CPU does not compute with it.
    """
    if precision not in PRECISIONS:
        raise ConfigError("no such precision", got=repr(precision), expected=" or ".join(PRECISIONS))
    capabilities = ov.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise ConfigError("this CPU does not compute in bf16", got=", ".join(capabilities), do="leave --precision out")

    def load(bundle: Bundle, spec: GraphSpec) -> OpenVinoGraph:
        loaded = OpenVinoGraph(bundle.path(spec.file), spec, precision=precision, threads=threads)
        bundle.require_unchanged()
        return loaded

    return load


def _share(value: Any) -> Any:
    return ov.Tensor(value, shared_memory=True)


def _spec(port: Any) -> TensorSpec:
    name, kind = port.any_name, port.element_type.get_type_name()
    if kind not in ELEMENT_TYPES:
        raise BackendError(f"tensor {name} has a type that no bundle uses", got=kind)
    shape = tuple(size.get_length() if size.is_static else str(size) for size in port.partial_shape)
    return TensorSpec(name=name, dtype=ELEMENT_TYPES[kind], shape=shape)
