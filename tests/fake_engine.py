"""The runtime half of `tensorrt` or `tensorrt_rtx`, without a GPU: an engine runs its ONNX graph in ONNX Runtime.

What the real ones leave undefined is refused here: an address that was never set or is no device memory, an output over
an input, a shape before a profile or outside of it. The device is `fake_cuda`.
"""

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tensorrt_rtx as real
from fake_cuda import ALIGNMENT, FakeCuda, host_memory

from ptp.bundle import open_bundle
from ptp.bundle.engine import CONFIG_NAME, KINDS, EngineBackend, EngineConfig, Profile, engine_folder, graph_of
from ptp.bundle.writer import file_entry
from ptp.cuda import CudaDevice
from ptp.engines.profiles import profiles_of

VERSION = "1.7.1.116"
DEVICE = CudaDevice(name="NVIDIA fake", compute_capability=(8, 6), memory_bytes=8 << 30)
DTYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(bool)": ("BOOL", np.bool_),
}


class FakeContext:
    """`IExecutionContext`."""

    def __init__(self, engine: "FakeEngine") -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return 0 <= profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "a shape before a profile"
        bounds = self._engine.profiles[self._profile].shapes[name]
        inside = len(shape) == len(bounds.min) and all(
            a <= x <= b for a, x, b in zip(bounds.min, shape, bounds.max, strict=True)
        )
        if not inside:
            return self._engine.refuse(f"{name} {shape} is outside of profile {self._profile}")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self._engine.nodes
        if memory % ALIGNMENT and name not in self._engine.host:
            return self._engine.refuse(f"{name} is not aligned")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return [
            name
            for name, node in self._engine.nodes.items()
            if node.is_input
            and (
                (-1 in node.shape and name not in self._shapes) or (name in self._engine.host and not self._value(name))
            )
        ]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        node = self._engine.nodes[name]
        if node.is_input:
            return self._shapes.get(name, node.shape)
        sizes = {
            symbol: size
            for other, x in self._engine.nodes.items()
            if x.is_input
            for symbol, size in zip(x.symbols, self._shapes.get(other, x.shape), strict=True)
            if isinstance(symbol, str)
        } | {name: self._value(name)[0] for name in self._engine.host}
        if "total_sequence_length" in sizes:
            sizes["next_sequence_length"] = sizes["total_sequence_length"] + 1
        return tuple(sizes[x] if isinstance(x, str) else x for x in node.symbols)

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cuda = self._engine, self._engine.cuda
        engine.log_call("execute_async_v3", self._profile)
        if self.infer_shapes():
            return engine.refuse("shapes are missing")
        if missing := [name for name in engine.nodes if name not in self._addresses]:
            return engine.refuse(f"no address of {missing}")
        if cuda.recording is not None and not engine.capturable:
            cuda.invalidated = True
            return engine.refuse("not permitted when stream is capturing")
        spans = {name: (self._addresses[name], self._bytes(name)) for name in engine.nodes}
        shapes = {name: self.get_tensor_shape(name) for name in engine.nodes}
        feeds = {name: np.array(self._value(name)) for name in engine.host}  # read at once
        for name, node in engine.nodes.items():
            if node.is_input or name in engine.host:
                continue
            start, size = spans[name]
            for other, (address, length) in spans.items():
                overlap = (
                    other != name and other not in engine.host and start < address + length and address < start + size
                )
                assert not overlap, f"{name} would be written over {other}"

        def compute() -> None:
            inputs = {
                name: cuda.at(*spans[name]).view(node.dtype).reshape(shapes[name])
                for name, node in engine.nodes.items()
                if node.is_input and name not in engine.host
            }
            names = [name for name, node in engine.nodes.items() if not node.is_input]
            for name, value in zip(names, engine.session.run(names, inputs | feeds), strict=True):
                assert value.shape == shapes[name], name
                cuda.at(*spans[name])[:] = value.reshape(-1).view(np.uint8)

        cuda.enqueue(compute)
        return True

    def _bytes(self, name: str) -> int:
        return math.prod(self.get_tensor_shape(name)) * np.dtype(self._engine.nodes[name].dtype).itemsize

    def _value(self, name: str) -> list[int]:
        if name not in self._addresses:
            return []
        node = self._engine.nodes[name]
        size = math.prod(node.shape) * np.dtype(node.dtype).itemsize
        return list(host_memory(self._addresses[name], size).view(node.dtype).tolist())


@dataclass(frozen=True)
class Node:
    is_input: bool
    kind: str
    dtype: Any
    symbols: tuple[int | str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(-1 if isinstance(size, str) else size for size in self.symbols)


class FakeEngine:
    """`ICudaEngine`, deserialised from what `write_engines` wrote."""

    def __init__(self, library: "FakeLibrary", data: dict[str, Any]) -> None:
        self.library, self.cuda, self.capturable = library, library.cuda, library.capturable
        self.profiles = tuple(Profile.model_validate(x) for x in data["profiles"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(data["onnx"], options, providers=["CPUExecutionProvider"])
        self.nodes = {
            node.name: Node(is_input, *DTYPES[node.type], tuple(node.shape))
            for is_input, nodes in ((True, self.session.get_inputs()), (False, self.session.get_outputs()))
            for node in nodes
        }
        self.host = {"num_kept"} & self.nodes.keys()  # an input of shapes

    def refuse(self, problem: str) -> bool:
        self.library.logger.log(real.ILogger.ERROR, problem)
        return False

    def log_call(self, *call: Any) -> None:
        self.library.calls.append(call)

    @property
    def streamable_weights_size(self) -> int:
        return 0

    @property
    def num_io_tensors(self) -> int:
        return len(self.nodes)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return real.TensorIOMode.INPUT if self.nodes[name].is_input else real.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(real.DataType, self.nodes[name].kind)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.nodes[name].shape

    def get_tensor_location(self, name: str) -> Any:
        return real.TensorLocation.HOST if name in self.host else real.TensorLocation.DEVICE

    def create_execution_context(self, strategy: Any) -> FakeContext:
        assert isinstance(strategy, real.ExecutionContextAllocationStrategy)
        return FakeContext(self)


OWN = {"refuse", "log_call"}
"""What of the classes above is the fake's own."""


class FakeRuntime:
    """`Runtime`."""

    def __init__(self, library: "FakeLibrary", logger: Any) -> None:
        self._library = library
        self.engine_host_code_allowed = False
        library.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> FakeEngine | None:
        try:
            data = json.loads(bytes(serialized_engine))
            if data.get("needs_host_code") and not self.engine_host_code_allowed:
                self._library.logger.log(real.ILogger.ERROR, "Host code is not allowed")
                return None
            return FakeEngine(self._library, data)
        except ValueError:
            self._library.logger.log(real.ILogger.ERROR, "The engine plan file is not compatible")
            return None


@dataclass
class FakeLibrary:
    """The module."""

    cuda: FakeCuda
    capturable: bool = True
    __version__: str = VERSION
    logger: Any = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    ILogger = real.ILogger
    TensorIOMode = real.TensorIOMode
    TensorLocation = real.TensorLocation
    ExecutionContextAllocationStrategy = real.ExecutionContextAllocationStrategy

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self, logger)


def install(
    patch: pytest.MonkeyPatch, backend: EngineBackend = "tensorrt-rtx", *, capturable: bool = True
) -> SimpleNamespace:
    """Put the fakes in the place of the modules, and a device into this machine."""
    cuda = FakeCuda()
    library = FakeLibrary(cuda, capturable)
    patch.setitem(sys.modules, backend.replace("-", "_"), library)
    patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    patch.setattr("ptp.runtime.backends.tensorrt.find_device", lambda: DEVICE)
    return SimpleNamespace(cuda=cuda, library=library)


def write_engines(
    folder: Path, backend: EngineBackend = "tensorrt-rtx", target: str = "sm86", max_context: int = 300
) -> None:
    """Write engines of a bundle, as `ptp build` would."""
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    for kind in KINDS:
        spec, profiles = graph_of(kind, manifest.graphs), profiles_of(kind, manifest, max_context)
        out = engine_folder(folder, backend, target, kind)
        out.mkdir(parents=True, exist_ok=True)
        engine = out / f"{kind}.engine"
        content = {"onnx": str(bundle.path(spec.file).absolute()), "profiles": [x.model_dump() for x in profiles]}
        engine.write_text(json.dumps(content))
        config = EngineConfig(
            kind=kind,
            backend=backend,
            target=target,
            compute_capability=DEVICE.compute_capability,
            builder=VERSION,
            precision=manifest.model.precision,
            flags={},
            profiles=profiles,
            max_context=max_context,
            inputs=spec.inputs,
            outputs=spec.outputs,
            graph=spec.file,
            graph_files={x: entry for x, entry in manifest.files.items() if x.startswith(spec.file)},
            engine=file_entry(engine),
            seconds=1.0,
            peak_bytes=1,
            estimated_bytes=1,
        )
        (out / CONFIG_NAME).write_text(config.to_json())
