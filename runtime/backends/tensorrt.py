"""TensorRT and TensorRT-RTX: one runtime under two names, for the engines that `ptp build` made.

Both modules offer the calls used here from TensorRT 10.3 on. Everything before a library is touched is checked first:
without a driver TensorRT does not fail, it returns garbage.
"""

import importlib
import mmap
from collections import deque
from pathlib import Path
from typing import Any

from ptp.bundle import Bundle
from ptp.bundle.engine import KINDS, MODULES, EngineBackend, graph_of
from ptp.bundle.manifest import Dtype, GraphSpec, TensorSpec
from ptp.bundle.reader import require_unchanged
from ptp.cuda import device_problem, find_device
from ptp.errors import BackendError
from ptp.runtime.backends.base import Graph, refuse_difference, settled
from ptp.runtime.backends.device_memory import DeviceMemory
from ptp.runtime.backends.engine_files import EngineFile, Machine, find_engine
from ptp.runtime.backends.engine_graph import EngineGraph, FixedEngineGraph

ELEMENT_TYPES: dict[str, Dtype] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}


class EngineLoader:
    """Loads a bundle's engines (is a `LoadGraph`).

    Args:
        backend: the library.
        target: name of the engines; by default those that fit the device.

    Raises:
        BackendError: there is no CUDA device.
        ImportError: the library or `cuda-bindings` is not installed.
    """

    def __init__(self, backend: EngineBackend, *, target: str | None) -> None:
        cuda = importlib.import_module("cuda.bindings.runtime")
        device = find_device()
        if device is None:
            raise BackendError(
                f"the backend {backend} needs an NVIDIA GPU",
                got=f"no CUDA device ({device_problem()})",
                do="run on a machine where nvidia-smi lists one, or use --backend onnxruntime or openvino",
            )
        self._library = importlib.import_module(MODULES[backend])
        self._machine = Machine(backend=backend, version=self._library.__version__, device=device)
        self._target = target
        self._log = _log(self._library)
        self._runtime = self._library.Runtime(self._log)
        self._memory = DeviceMemory(cuda)

    def __call__(self, bundle: Bundle, spec: GraphSpec) -> Graph:
        """Load the engine of a graph; see `LoadGraph`.

        Raises:
            PtpError: see `find_engine`.
            BackendError: the library refuses the engine, or its inputs and outputs are not those of its fingerprint or
                of the manifest.
        """
        kind = next(kind for kind in KINDS if graph_of(kind, bundle.manifest.graphs) == spec)
        file = find_engine(bundle, spec, kind, self._machine, self._target)
        engine = self._deserialise(file)
        inputs, outputs = self._tensors(engine, spec)
        repair = f"build it again: {file.rebuild}"
        named = GraphSpec(file=spec.file, inputs=file.config.inputs, outputs=settled(file.config.outputs, spec.outputs))
        refuse_difference(file.path, inputs, outputs, named, of="its config.json", do=repair)
        refuse_difference(file.path, inputs, outputs, spec, do=repair)
        if engine.num_optimization_profiles != len(file.config.profiles):
            raise BackendError(
                f"{file.path} has other profiles than its config.json",
                got=engine.num_optimization_profiles,
                expected=len(file.config.profiles),
                do=repair,
            )
        fixed = not any(profile.shapes for profile in file.config.profiles)
        graph = FixedEngineGraph if fixed else EngineGraph
        return graph(self._library, engine, self._memory, file, inputs, outputs, self._log.errors)

    def _deserialise(self, file: EngineFile) -> Any:
        self._log.errors.clear()
        if file.config.flags.get("VERSION_COMPATIBLE"):  # such an engine carries code of its own release along
            self._runtime.engine_host_code_allowed = True
        with file.path.open("rb") as opened, _mapped(opened, file.path) as data:
            engine = self._runtime.deserialize_cuda_engine(data)
        require_unchanged(file.path, file.state)
        if engine is None:
            raise BackendError(
                f"{self._machine.backend} {self._machine.version} cannot load {file.path}",
                got=" ".join(self._log.errors) or "no engine",
                do=f"build it again: {file.rebuild}",
            )
        if engine.streamable_weights_size:  # of an engine that was built with weight streaming
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return engine

    def _tensors(self, engine: Any, spec: GraphSpec) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return what the engine itself says of its inputs and outputs."""
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        mode = self._library.TensorIOMode
        inputs = tuple(_spec(engine, name) for name in names if engine.get_tensor_mode(name) == mode.INPUT)
        outputs = [_spec(engine, name) for name in names if engine.get_tensor_mode(name) == mode.OUTPUT]
        return inputs, settled(outputs, spec.outputs)


def _mapped(opened: Any, path: Path) -> mmap.mmap:
    """Return a file's bytes without reading them: an engine may be larger than the memory that is left."""
    try:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (ValueError, OSError) as error:  # an empty file cannot be mapped
        raise BackendError(f"{path} cannot be read", got=error) from error


def _spec(engine: Any, name: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    if kind not in ELEMENT_TYPES:
        raise BackendError(f"tensor {name} has a type that no bundle uses", got=kind)
    shape = tuple(size if size >= 0 else "?" for size in engine.get_tensor_shape(name))
    return TensorSpec(name=name, dtype=ELEMENT_TYPES[kind], shape=shape)


def _log(library: Any) -> Any:
    """Return a logger that prints nothing and remembers the last errors, which say why a call returned None."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.errors.append(message)

    return Log()
