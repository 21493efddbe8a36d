"""The builder half of `tensorrt`, which no registry has for this machine: it records the calls and builds nothing.

Its names are those of the real `tensorrt_rtx`, compared with it by a test; the inputs and outputs of a graph are read
with `onnx`. An engine is the record of the calls that led to it, as JSON. Where TensorRT 10 or 11 differs from
TensorRT-RTX, a test changes the fake, and names its source.
"""

import json
from abc import ABC, abstractmethod
from enum import Enum, IntEnum
from typing import Any

import onnx

__version__ = "10.3.0"

RECORD: list[list[Any]] = []


def record(*call: Any) -> None:
    RECORD.append([x.name if isinstance(x, Enum) else list(x) if isinstance(x, tuple) else x for x in call])


class ILogger(ABC):
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    @abstractmethod
    def log(self, severity: Severity, message: str) -> None: ...


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32 = 3
    WEIGHT_STREAMING = 5
    VERSION_COMPATIBLE = 7


class MemoryPoolType(Enum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class DataType(Enum):
    FLOAT = onnx.TensorProto.FLOAT
    HALF = onnx.TensorProto.FLOAT16
    INT64 = onnx.TensorProto.INT64
    INT32 = onnx.TensorProto.INT32
    BOOL = onnx.TensorProto.BOOL


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.dtype = DataType(kind.elem_type)
        self.shape = tuple(x.dim_value if x.HasField("dim_value") else -1 for x in kind.shape.dim)


class INetworkDefinition:
    def __init__(self) -> None:
        self.inputs: list[ITensor] = []
        self.outputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self.outputs[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self.network = network

    def parse_from_file(self, model: str) -> bool:
        record("parse_from_file", model)
        graph = onnx.load(model, load_external_data=False).graph
        self.network.inputs = [ITensor(value) for value in graph.input]
        self.network.outputs = [ITensor(value) for value in graph.output]
        return True

    def get_error(self, index: int) -> str:
        raise IndexError(index)


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+"


class IOptimizationProfile:
    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        record("set_shape", input, min, opt, max)

    def set_shape_input(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        record("set_shape_input", input, min, opt, max)


class IBuilderConfig:
    hardware_compatibility_level = HardwareCompatibilityLevel.NONE
    _profiles = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            record(name, value)
        super().__setattr__(name, value)

    def set_flag(self, flag: BuilderFlag) -> None:
        record("set_flag", flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        record("clear_flag", flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        record("set_memory_pool_limit", pool, pool_size)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        record("set_timing_cache", cache.data.decode(), ignore_mismatch)
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._cache

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        record("add_optimization_profile")
        self._profiles += 1
        return self._profiles - 1


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class Builder:
    def __init__(self, logger: ILogger) -> None:
        RECORD.clear()
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        record("create_network", flags)
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        record("build_serialized_network")
        return IHostMemory(json.dumps(RECORD).encode())
