"""`cuda.bindings.runtime` without a GPU.

Device memory is host memory full of NaN, and a stream is a list of what is still to do: a result that is read before
the stream was waited for is still NaN. Memory that was never allocated, or was given back, is an error.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

ALIGNMENT = 256


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class FakeCuda:
    """`cuda.bindings.runtime`; every function returns a tuple that starts with the error.

    Args:
        capacity: bytes that may be allocated.
    """

    cudaError_t = Error
    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode
    cudaStreamNonBlocking = 1

    capacity: int = 1 << 30
    blocks: dict[int, np.ndarray] = field(default_factory=dict)
    queue: list[Callable[[], None]] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None
    invalidated: bool = False
    calls: list[str] = field(default_factory=list)
    copied: list[tuple[CopyKind, int]] = field(default_factory=list)
    streams: int = 0

    def at(self, address: int, size: int) -> np.ndarray:
        """Return `size` bytes of one allocation."""
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not device memory")

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def cudaGetErrorString(self, error: Error) -> tuple[Any, ...]:
        return Error.cudaSuccess, error.name.encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        self.calls.append("cudaGetLastError")
        return (Error.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self.calls.append("cudaMalloc")
        assert size > 0
        if sum(map(len, self.blocks.values())) + size > self.capacity:
            return Error.cudaErrorMemoryAllocation, None
        raw = np.full(size + ALIGNMENT, 0xFF, np.uint8)
        block = raw[-raw.ctypes.data % ALIGNMENT :][:size]
        self.blocks[block.ctypes.data] = block
        return Error.cudaSuccess, block.ctypes.data

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.blocks[address]
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking, "the default stream would wait for others"
        self.streams += 1
        return Error.cudaSuccess, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams -= 1
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream == 7
        if self.recording is not None:
            self.invalidated = True
            return (Error.cudaErrorStreamCaptureInvalidated,)
        while self.queue:
            self.queue.pop(0)()
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: CopyKind, stream: int) -> tuple[Any, ...]:
        assert stream == 7
        self.copied.append((kind, size))
        to_host, from_host = kind == CopyKind.cudaMemcpyDeviceToHost, kind == CopyKind.cudaMemcpyHostToDevice

        def copy() -> None:
            data = host_memory(source, size) if from_host else self.at(source, size)
            (host_memory(target, size) if to_host else self.at(target, size))[:] = data

        self.enqueue(copy)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[Any, ...]:
        self.calls.append("cudaStreamBeginCapture")
        self.recording, self.invalidated = [], False
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        recorded, self.recording = self.recording, None
        return (Error.cudaErrorStreamCaptureInvalidated, None) if self.invalidated else (Error.cudaSuccess, recorded)

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[Any, ...]:
        assert graph, "nothing was recorded"
        return Error.cudaSuccess, tuple(graph)

    def cudaGraphLaunch(self, executable: tuple[Callable[[], None], ...], stream: int) -> tuple[Any, ...]:
        self.calls.append("cudaGraphLaunch")
        for work in executable:
            self.enqueue(work)
        return (Error.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, executable: Any) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)


def host_memory(address: int, size: int) -> np.ndarray:
    """Return the bytes at an address, as an array that does not own them."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
