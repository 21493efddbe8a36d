"""A deserialised engine and its buffers on the device."""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptp.bundle.engine import CONFIG_NAME, Profile
from ptp.bundle.manifest import TensorSpec
from ptp.errors import BackendError
from ptp.runtime.backends.base import DTYPES, Array, DeviceTensor, Shape, check_feeds, fits
from ptp.runtime.backends.device_memory import Buffer, DeviceMemory
from ptp.runtime.backends.engine_files import EngineFile

EMPTY_BYTES = 256
"""Of an input without elements: TensorRT wants an address of every input, of its usual alignment."""


@dataclass(frozen=True, kw_only=True)
class DeviceArray:
    """A tensor on the device (implements `DeviceTensor`)."""

    buffer: Buffer
    shape: Shape
    dtype: np.dtype[Any]
    memory: DeviceMemory

    def numpy(self) -> Array:
        """See `DeviceTensor.numpy`."""
        return self.memory.download(self.buffer, self.shape, self.dtype)


class EngineGraph:
    """An engine of inputs whose shapes vary within its profiles (implements `Graph`).

    Each run takes the first profile that admits its shapes, in an execution context of its own. Outputs are written
    into buffers of the size that the largest shapes need; a buffer is free again when the last reference to the tensor
    in it is dropped. A decoder so needs two sets of cache buffers, whatever the length: what one step returns is the
    next one's input, and the step before gave its set back. Threads take turns.

    Args:
        library: the module `tensorrt` or `tensorrt_rtx`.
        engine: its engine.
        memory: of the device.
        file: where the engine came from, with its profiles.
        inputs: names, element types and shapes.
        outputs: likewise.
        errors: the last errors that the library logged.

    Raises:
        BackendError: the device has not enough memory, or a profile is not what the fingerprint says.
    """

    prefill_chunk: int | None = None

    def __init__(
        self,
        library: Any,
        engine: Any,
        memory: DeviceMemory,
        file: EngineFile,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        errors: deque[str],
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._library = library
        self._engine = engine
        self._memory = memory
        self._file = file
        self._errors = errors
        host = library.TensorLocation.HOST
        self._on_host = {spec.name for spec in inputs if engine.get_tensor_location(spec.name) == host}
        if wrong := [spec.name for spec in outputs if engine.get_tensor_location(spec.name) == host]:
            raise BackendError(f"{file.path} returns {', '.join(wrong)} on the host", do="export the bundle again")
        self._check_profiles()
        self.largest = _largest(inputs, file.config.profiles)
        self._contexts = [self._context(number) for number in range(len(file.config.profiles))]
        self._sizes = self._largest_sizes()
        # one set that is read and one that is written
        self._memory.reserve(2 * [self._sizes[spec.name] for spec in outputs])

    def run(self, feeds: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        """See `Graph.run`."""
        values: dict[str, Any] = {
            name: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
            for name, value in feeds.items()
        }
        check_feeds(self._file.path.name, self.inputs, values)
        with self._memory.lock:
            self._errors.clear()
            try:
                return self._execute(values)
            finally:
                if any(isinstance(value, np.ndarray) for value in values.values()):
                    self._memory.synchronise()  # arrays of the host may change from here on

    def _execute(self, values: dict[str, Any]) -> dict[str, DeviceTensor]:
        context = self._contexts[self._profile(values)]
        # what is held here is free again when this returns, and only what is queued later can write it
        held = [self._bind_input(context, spec, values[spec.name]) for spec in self.inputs]
        self._infer_shapes(context)
        outputs: dict[str, DeviceTensor] = {spec.name: self._bind_output(context, spec) for spec in self.outputs}
        self._enqueue(context)
        del held
        return outputs

    def _bind_input(self, context: Any, spec: TensorSpec, value: Any) -> Any:
        """Give a context an input's shape and address; returns what must live until the run is queued."""
        if _is_open(spec):
            self._require(context.set_input_shape(spec.name, value.shape), f"the shape of {spec.name}")
        if spec.name in self._on_host:
            array = value if isinstance(value, np.ndarray) else value.numpy()
            self._address(context, spec.name, array.ctypes.data)
            return array
        if isinstance(value, DeviceArray):
            buffer = value.buffer
        else:
            size = _bytes(self.largest.get(spec.name, value.shape), spec) if value.size else EMPTY_BYTES
            buffer = self._memory.take(size)
            self._memory.upload(buffer, value)
        self._address(context, spec.name, buffer.address)
        return buffer

    def _bind_output(self, context: Any, spec: TensorSpec) -> DeviceArray:
        shape = tuple(context.get_tensor_shape(spec.name))
        if not fits(shape, spec):
            raise BackendError(f"{self._file.path} computes another shape of {spec.name}", got=shape)
        buffer = self._memory.take(self._sizes[spec.name])
        self._address(context, spec.name, buffer.address)
        return DeviceArray(buffer=buffer, shape=shape, dtype=np.dtype(DTYPES[spec.dtype]), memory=self._memory)

    def _profile(self, values: Mapping[str, Any]) -> int:
        """Return the number of the first profile that admits the values' shapes."""
        bounded = {name for profile in self._file.config.profiles for name in profile.shapes}
        shapes = {spec.name: _measure(spec, values[spec.name]) for spec in self.inputs if spec.name in bounded}
        for number, profile in enumerate(self._file.config.profiles):
            if all(_between(shapes[name], bounds.min, bounds.max) for name, bounds in profile.shapes.items()):
                return number
        raise BackendError(
            f"{self._file.path} has no profile for these shapes",
            got=", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()),
            do=f"build it again with a larger --max-context: {self._file.rebuild}",
        )

    def _context(self, number: int) -> Any:
        """Return an execution context of a profile; its scratch memory is what that profile needs."""
        strategy = self._library.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self._failure("no execution context")
        stream = int(self._memory.stream)
        self._require(context.set_optimization_profile_async(number, stream), f"profile {number}")
        self._memory.synchronise()
        return context

    def _largest_sizes(self) -> dict[str, int]:
        """Return the bytes that each output takes at the largest shapes of any profile."""
        sizes = {spec.name: 1 for spec in self.outputs}
        for context, profile in zip(self._contexts, self._file.config.profiles, strict=True):
            values = []
            for spec in self.inputs:
                if _is_open(spec):
                    self._require(
                        context.set_input_shape(spec.name, profile.shapes[spec.name].max), f"{spec.name}'s shape"
                    )
                elif spec.name in self._on_host:
                    values.append(np.array(profile.shapes[spec.name].max, DTYPES[spec.dtype]))
                    self._address(context, spec.name, values[-1].ctypes.data)
            self._infer_shapes(context)
            for spec in self.outputs:
                sizes[spec.name] = max(sizes[spec.name], _bytes(context.get_tensor_shape(spec.name), spec))
        return sizes

    def _check_profiles(self) -> None:
        """Refuse a fingerprint whose profiles do not bound what has to be bounded."""
        specs = {spec.name: spec for spec in self.inputs}
        wanted = [spec.name for spec in self.inputs if _is_open(spec) or spec.name in self._on_host]
        for profile in self._file.config.profiles:
            problems = [f"no range of {name}" for name in wanted if name not in profile.shapes]
            problems += [
                f"a range of {name}"
                for name, bounds in profile.shapes.items()
                if name not in specs or not _suits(bounds.max, specs[name])
            ]
            if problems:
                raise BackendError(
                    f"profile {profile.name} in {self._file.path.parent / CONFIG_NAME} does not suit the engine",
                    got=", ".join(problems),
                    do=f"build it again: {self._file.rebuild}",
                )

    def _infer_shapes(self, context: Any) -> None:
        if unknown := context.infer_shapes():
            raise self._failure(f"no shape of {', '.join(unknown)}")

    def _address(self, context: Any, name: str, address: int) -> None:
        self._require(context.set_tensor_address(name, address), f"the address of {name}")

    def _enqueue(self, context: Any) -> None:
        self._require(context.execute_async_v3(int(self._memory.stream)), "the run")

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise self._failure(f"{what} was refused")

    def _failure(self, what: str) -> BackendError:
        return BackendError(f"{self._file.path} failed", got=" ".join((what, *self._errors)))


class FixedEngineGraph(EngineGraph):
    """An engine whose shapes are all fixed: it has its buffers for good, and runs as one CUDA graph where that works.

    Outputs are copied, on the device, into buffers that live as long as the tensor that is returned.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        (self._only,) = self._contexts
        self._held = {spec.name: self._memory.take(self._fixed_bytes(spec)) for spec in (*self.inputs, *self.outputs)}
        for name, buffer in self._held.items():
            self._address(self._only, name, buffer.address)
        self._runs = 0
        self._replay: Callable[[], None] | None = None

    def _execute(self, values: dict[str, Any]) -> dict[str, DeviceTensor]:
        for spec in self.inputs:
            value = values[spec.name]
            if isinstance(value, DeviceArray):
                self._memory.copy(self._held[spec.name], value.buffer, self._fixed_bytes(spec))
            else:
                self._memory.upload(self._held[spec.name], value)
        if self._runs == 1:  # the first run sets the engine up, which cannot be recorded
            self._replay = self._memory.capture(self._queue)
        (self._replay or self._queue)()
        self._runs += 1
        return {spec.name: self._copy(spec) for spec in self.outputs}

    def _queue(self) -> None:
        self._enqueue(self._only)

    def _copy(self, spec: TensorSpec) -> DeviceArray:
        size = self._fixed_bytes(spec)
        buffer = self._memory.take(size)
        self._memory.copy(buffer, self._held[spec.name], size)
        shape = tuple(int(x) for x in spec.shape)
        return DeviceArray(buffer=buffer, shape=shape, dtype=np.dtype(DTYPES[spec.dtype]), memory=self._memory)

    def _fixed_bytes(self, spec: TensorSpec) -> int:
        return _bytes([int(size) for size in spec.shape], spec)


def _largest(inputs: Collection[TensorSpec], profiles: Collection[Profile]) -> dict[str, Shape]:
    """Return the largest shape of each input that has open dimensions."""
    return {
        spec.name: tuple(max(sizes) for sizes in zip(*(x.shapes[spec.name].max for x in profiles), strict=True))
        for spec in inputs
        if _is_open(spec)
    }


def _is_open(spec: TensorSpec) -> bool:
    return any(isinstance(size, str) for size in spec.shape)


def _suits(largest: Shape, spec: TensorSpec) -> bool:
    """Return whether a profile's bound is a shape of an input or, where that is fixed, a value for each element."""
    return (
        fits(largest, spec)
        if _is_open(spec)
        else len(largest) == math.prod(x for x in spec.shape if isinstance(x, int))
    )


def _measure(spec: TensorSpec, value: Any) -> Shape:
    """Return what a profile bounds of an input: its shape, or its values where the shape is fixed."""
    if _is_open(spec):
        shape: Shape = value.shape
        return shape
    array = value if isinstance(value, np.ndarray) else value.numpy()
    return tuple(int(x) for x in array.ravel())


def _between(found: Shape, low: Shape, high: Shape) -> bool:
    return len(found) == len(low) == len(high) and all(a <= x <= b for a, x, b in zip(low, found, high, strict=True))


def _bytes(shape: Collection[int], spec: TensorSpec) -> int:
    return max(1, math.prod(shape) * np.dtype(DTYPES[spec.dtype]).itemsize)
