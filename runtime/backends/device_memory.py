"""Memory of a CUDA device, allocated once and used again, and the one stream that all work on it is queued on."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from threading import RLock
from typing import Any

import numpy as np

from ptp.errors import BackendError
from ptp.runtime.backends.base import Array, Shape


class Buffer:
    """A piece of device memory; dropping the last reference makes it free for the next that asks for its size.

    Attributes:
        address: where it starts.
    """

    def __init__(self, address: int, idle: list[int]) -> None:
        self.address = address
        self._idle = idle

    def __del__(self) -> None:
        # what is queued still reads it, and will have when anything queued later writes it: there is one stream
        self._idle.append(self.address)


class DeviceMemory:
    """Allocates, copies and synchronises.

    Args:
        cuda: the module `cuda.bindings.runtime`.

    Attributes:
        stream: CUDA's handle.
        lock: held by whoever queues work: what another thread queued in the meantime would be recorded by `capture`.

    Raises:
        BackendError: CUDA failed; its methods raise it too.
    """

    def __init__(self, cuda: Any) -> None:
        self.lock = RLock()
        self._cuda = cuda
        self._idle: defaultdict[int, list[int]] = defaultdict(list)
        self._owned: list[tuple[Callable[[Any], object], Any]] = []
        self.stream = self._call("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        self._owned.append((cuda.cudaStreamDestroy, self.stream))
        weakref.finalize(self, _release, self._owned)

    def take(self, size: int) -> Buffer:
        """Return a buffer of exactly `size` bytes, at least 1, that nobody else holds."""
        idle = self._idle[size]
        try:
            address = idle.pop()
        except IndexError:
            address = int(self._call("cudaMalloc", size))
            self._owned.append((self._cuda.cudaFree, address))
        return Buffer(address, idle)

    def reserve(self, sizes: Iterable[int]) -> None:
        """Allocate buffers now, so that a device without room for them says so before the first run."""
        buffers = [self.take(size) for size in sizes]
        del buffers

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Queue a copy from the host; the array must stay as it is until `synchronise`."""
        if array.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._call("cudaMemcpyAsync", buffer.address, array.ctypes.data, array.nbytes, kind, self.stream)

    def copy(self, target: Buffer, source: Buffer, size: int) -> None:
        """Queue a copy of `size` bytes on the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target.address, source.address, size, kind, self.stream)

    def download(self, buffer: Buffer, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Return what a buffer holds, once all that was queued is done."""
        array: Array = np.empty(shape, dtype)
        if array.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            with self.lock:
                self._call("cudaMemcpyAsync", array.ctypes.data, buffer.address, array.nbytes, kind, self.stream)
                self.synchronise()
        return array

    def synchronise(self) -> None:
        """Wait for all that was queued."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """Record what a function queues, without doing it, as a CUDA graph.

        Args:
            enqueue: queues work on `stream`, the same with the same addresses each time.

        Returns:
            A function that queues the recorded work; None if it cannot be recorded.
        """
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
            failed = False
        except BackendError:
            failed = True
        error, graph = cuda.cudaStreamEndCapture(self.stream)  # a capture that failed must be ended too
        success = cuda.cudaError_t.cudaSuccess
        recorded, executable = error == success, None
        if recorded and not failed:
            error, executable = cuda.cudaGraphInstantiate(graph, 0)
        if recorded:
            self._call("cudaGraphDestroy", graph)
        if failed or error != success:
            cuda.cudaGetLastError()  # forgets the error, which the next call would return otherwise
            return None
        self._owned.append((cuda.cudaGraphExecDestroy, executable))

        def replay() -> None:
            self._call("cudaGraphLaunch", executable, self.stream)

        return replay

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            text = self._cuda.cudaGetErrorString(error)[1]
            raise BackendError(f"{name} failed", got=text.decode(errors="replace"))
        return values[0] if values else None


def _release(owned: list[tuple[Callable[[Any], object], Any]]) -> None:
    while owned:
        destroy, handle = owned.pop()
        destroy(handle)
