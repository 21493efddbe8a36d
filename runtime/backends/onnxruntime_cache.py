"""Keys and values in buffers that an ONNX Runtime graph appends to, on the CPU."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from ptp.runtime.backends.base import Array, DeviceTensor, Shape

MIN_ROOM, GROWTH = 256, 4
"""A buffer has room for at least so many more rows, and for a fourth of its own; pages not written take no memory."""


class Cache:
    """The buffers of one sequence. Whoever appends first to what is in them has them; see `room_for`.

    Args:
        past: rows of each buffer, (1, kv heads, past, d), which are copied.
        total: rows that will be filled.
    """

    def __init__(self, past: Mapping[str, Array], total: int) -> None:
        self.room = total + max(MIN_ROOM, total // GROWTH)
        self.buffers = {name: np.zeros((*x.shape[:2], self.room, *x.shape[3:]), x.dtype) for name, x in past.items()}
        for name, rows in past.items():
            self.buffers[name][:, :, : rows.shape[2]] = rows
        self.values = {name: ort.OrtValue.ortvalue_from_numpy(buffer) for name, buffer in self.buffers.items()}
        self._filled, self._lock = total, threading.Lock()

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
        return self.numpy().shape

    def numpy(self) -> Array:
        """See `DeviceTensor.numpy`."""
        rows: Array = self.cache.buffers[self.name][:, :, : self.length]
        return rows


def room_for(past: Mapping[str, Array | DeviceTensor], total: int) -> Cache:
    """Return buffers that begin with the past and have room for new rows.

    They are the ones that the past is in, unless they are full or a run has appended to the same past before: then its
    rows are copied into larger ones.

    Args:
        past: key and value of each layer, (1, kv heads, past, d).
        total: rows of the past and new ones.
    """
    first = next(iter(past.values()), None)
    if isinstance(first, CacheTensor) and all(_is_beside(x, first, name) for name, x in past.items()):
        if first.cache.extend(first.length, total):
            return first.cache
    return Cache({name: x if isinstance(x, np.ndarray) else x.numpy() for name, x in past.items()}, total)


def _is_beside(tensor: Any, first: CacheTensor, name: str) -> bool:
    return (
        isinstance(tensor, CacheTensor)
        and tensor.cache is first.cache
        and tensor.length == first.length
        and tensor.name == name
    )
