"""ONNX Runtime: on the CPU, or on a GPU through its CUDA and TensorRT execution providers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ptp.bundle.manifest import Dtype, GraphSpec, TensorSpec
from ptp.errors import BackendError, ConfigError
from ptp.runtime.backends.base import Array, DeviceTensor

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nvtensorrtrtx": "NvTensorRTRTXExecutionProvider",
}
"""What users call an execution provider, and what ONNX Runtime calls it."""

ELEMENT_TYPES: dict[str, Dtype] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}

LOG_ERRORS = 3  # ONNX Runtime's severity: its warnings would mix with the program's own output


class OnnxRuntimeGraph:
    """A graph in an ONNX Runtime session (implements `Graph`).

    Args:
        path: the ONNX file.
        spec: what its inputs and outputs must be.
        provider: a key of `PROVIDERS`.
        threads: CPU threads of one operator, ONNX Runtime's choice if None.

    Raises:
        ConfigError: there is no such provider, or `threads` is below 1.
        BackendError: the provider is not available, the file cannot be loaded, or it differs from `spec`.
    """

    def __init__(self, path: Path, spec: GraphSpec, *, provider: str = "cpu", threads: int | None = None) -> None:
        name = available_provider(provider)
        options = ort.SessionOptions()
        options.log_severity_level = LOG_ERRORS
        if threads is not None:
            if threads < 1:
                raise ConfigError("threads is out of range", got=threads, expected="at least 1")
            options.intra_op_num_threads = threads
        try:
            session = ort.InferenceSession(path, options, providers=[name])
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise BackendError(f"ONNX Runtime cannot load {path}", got=error) from error
        session.disable_fallback()
        if session.get_providers()[0] != name:
            raise BackendError(
                f"ONNX Runtime could not start {name}",
                got=", ".join(session.get_providers()),
                do=f"install the libraries {name} needs or use --provider cpu",
            )
        self._session = session
        self._device = "cpu" if provider == "cpu" else "cuda"
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        _refuse_difference(path, "inputs", self.inputs, spec.inputs)
        _refuse_difference(path, "outputs", self.outputs, spec.outputs)

    def run(self, feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        """See `Graph.run`."""
        try:
            binding = self._session.io_binding()
            for name, value in feeds.items():
                binding.bind_ortvalue_input(name, _to_ort_value(value))
            for output in self.outputs:
                binding.bind_output(output.name, self._device)
            self._session.run_with_iobinding(binding)
            values = binding.get_outputs()
        except Exception as error:  # as above
            raise BackendError("ONNX Runtime failed", got=error) from error
        return {output.name: value for output, value in zip(self.outputs, values, strict=True)}


def available_provider(provider: str) -> str:
    """Return ONNX Runtime's name of an execution provider that this installation has.

    Raises:
        ConfigError: there is no such provider.
        BackendError: it is not available here.
    """
    if provider not in PROVIDERS:
        raise ConfigError("no such provider", got=repr(provider), expected=" or ".join(PROVIDERS))
    available = ort.get_available_providers()
    if PROVIDERS[provider] not in available:
        raise BackendError(
            f"the provider {provider} is not available in this ONNX Runtime",
            got=", ".join(short for short, name in PROVIDERS.items() if name in available),
            expected=PROVIDERS[provider],
            do="install the onnxruntime package that has it, or use --provider cpu",
        )
    return PROVIDERS[provider]


def _to_ort_value(value: Array | DeviceTensor) -> Any:
    # a value that ONNX Runtime returned goes back in as it is, without a copy
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _spec(node: Any) -> TensorSpec:
    if node.type not in ELEMENT_TYPES:
        raise BackendError(f"tensor {node.name} has a type that no bundle uses", got=node.type)
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
    return TensorSpec(name=node.name, dtype=ELEMENT_TYPES[node.type], shape=shape)


def _refuse_difference(path: Path, what: str, got: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> None:
    found, wanted = {x.name: x for x in got}, {x.name: x for x in expected}
    problems = [f"{name} missing" for name in wanted if name not in found]
    problems += [f"{name} extra" for name in found if name not in wanted]
    problems += [
        f"{name} is {_describe(found[name])} instead of {_describe(spec)}"
        for name, spec in wanted.items()
        if name in found and _describe(found[name]) != _describe(spec)
    ]
    if problems:
        raise BackendError(
            f"the {what} of {path} are not those of the manifest", got=", ".join(problems), do="export the bundle again"
        )


def _describe(spec: TensorSpec) -> str:
    """Return type and shape, every dimension that is named at run time as '?'."""
    return f"{spec.dtype} [{', '.join(str(size) if isinstance(size, int) else '?' for size in spec.shape)}]"
