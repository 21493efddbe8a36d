"""Keys and values in buffers that an ONNX Runtime graph appends to."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from ptp.runtime.backends.base import Array, DeviceTensor, Shape

MIN_ROOM, GROWTH = 256, 4
"""A buffer has room for at least so many more rows, and for a fourth of its own.

On the CPU, pages that were not written take no memory."""


class Cache:
    """The buffers of one sequence. Whoever appends first to what is in them has them; see `room_for`.

    Args:
        past: rows of each buffer, (1, kv heads, past, d), which are copied.
        total: rows that will be filled.
        device: where the buffers are, `cpu` or `cuda`.
    """

    def __init__(self, past: Mapping[str, Array], total: int, device: str) -> None:
        self.room = total + max(MIN_ROOM, total // GROWTH)
        self._buffers: dict[str, Array] = {}
        self.values: dict[str, ort.OrtValue] = {}
        for name, rows in past.items():
            shape = (*rows.shape[:2], self.room, *rows.shape[3:])
            if device != "cpu" and not rows.size:  # nothing to copy to the device
                self.values[name] = ort.OrtValue.ortvalue_from_shape_and_type(shape, rows.dtype, device)
                continue
            buffer = np.zeros(shape, rows.dtype)
            buffer[:, :, : rows.shape[2]] = rows
            self.values[name] = ort.OrtValue.ortvalue_from_numpy(buffer, device)
            if device == "cpu":
                self._buffers[name] = buffer  # which the value is a view of
        self._filled, self._lock = total, threading.Lock()

    def rows(self, name: str, length: int) -> Array:
        """Return the first rows of a buffer, (1, kv heads, length, d), copied where it is on a device."""
        buffer = self._buffers[name] if name in self._buffers else self.values[name].numpy()
        rows: Array = buffer[:, :, :length]
        return rows

    def extend(self, past: int, total: int) -> bool:
        """Return whether rows `past` to `total` may be written: nobody has, and there is room."""
        with self._lock:
            if self._filled != past or total > self.room:
                return False
            self._filled = total
            return True


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheTensor:
    """The first rows of a buffer (implements `DeviceTensor`); they are never written again."""

    cache: Cache
    name: str
    length: int

    @property
    def shape(self) -> Shape:
        """(1, kv heads, length, d)."""
        batch, heads, _, size = self.cache.values[self.name].shape()
        return batch, heads, self.length, size

    def numpy(self) -> Array:
        """See `DeviceTensor.numpy`."""
        return self.cache.rows(self.name, self.length)


def room_for(past: Mapping[str, Array | DeviceTensor], total: int, device: str = "cpu") -> Cache:
    """Return buffers that begin with the past and have room for new rows.

    They are the ones that the past is in, unless they are full or a run has appended to the same past before: then its
    rows are copied into larger ones, from a device through the host.

    Args:
        past: key and value of each layer, (1, kv heads, past, d).
        total: rows of the past and new ones.
        device: where new buffers are made, `cpu` or `cuda`.
    """
    first = next(iter(past.values()), None)
    if isinstance(first, CacheTensor) and all(_is_beside(x, first, name) for name, x in past.items()):
        if first.cache.extend(first.length, total):
            return first.cache
    return Cache({name: x if isinstance(x, np.ndarray) else x.numpy() for name, x in past.items()}, total, device)


def _is_beside(tensor: Any, first: CacheTensor, name: str) -> bool:
    return (
        isinstance(tensor, CacheTensor)
        and tensor.cache is first.cache
        and tensor.length == first.length
        and tensor.name == name
    )
