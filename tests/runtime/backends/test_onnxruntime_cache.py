"""The cache that ONNX Runtime appends to in place: what came out never changes, whoever else appends."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ptp.runtime.backends import onnxruntime_cache
from ptp.runtime.backends.base import Array, DeviceTensor
from ptp.runtime.backends.onnxruntime_cache import Cache, CacheTensor, room_for

NAMES = ("past_key_values.0.key", "past_key_values.0.value")


def rows(count: int, first: int = 0) -> Array:
    """Return (1, 2, count, 3), of which each row is its own number."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    return np.broadcast_to(numbers[:, None], (1, 2, count, 3)).copy()


def append(past: dict[str, Array | DeviceTensor], new: Array) -> tuple[Cache, dict[str, Array | DeviceTensor]]:
    """Write rows behind the past, as the graph does."""
    before = next(iter(past.values()))
    length = (before if isinstance(before, np.ndarray) else before.numpy()).shape[2]
    total = length + new.shape[2]
    cache = room_for(past, total)
    for name in past:
        cache.values[name].numpy()[:, :, length:total] = new
    return cache, {name: CacheTensor(cache=cache, name=name, length=total) for name in past}


def begin() -> tuple[Cache, dict[str, Array | DeviceTensor]]:
    return append(dict.fromkeys(NAMES, rows(0)), rows(5))


def test_rows_are_appended_where_the_past_is() -> None:
    cache, past = begin()
    for length in range(5, 9):
        again, past = append(past, rows(1, length))
        assert again is cache
    for tensor in past.values():
        np.testing.assert_array_equal(tensor.numpy(), rows(9))


def test_a_full_buffer_is_replaced_by_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cache, "MIN_ROOM", 2)
    cache, past = begin()
    kept, caches = past, {cache}
    for length in range(5, 40):
        cache, past = append(past, rows(1, length))
        caches.add(cache)
    assert 3 < len(caches) < 20
    np.testing.assert_array_equal(past[NAMES[1]].numpy(), rows(40))
    np.testing.assert_array_equal(kept[NAMES[1]].numpy(), rows(5))


def test_two_continuations_of_one_past_do_not_meet() -> None:
    cache, past = begin()
    mine, first = append(past, rows(2, 100))
    other, second = append(past, rows(2, 200))
    assert mine is cache
    assert other is not cache
    np.testing.assert_array_equal(first[NAMES[0]].numpy()[0, 0, :, 0], [0, 1, 2, 3, 4, 100, 101])
    np.testing.assert_array_equal(second[NAMES[0]].numpy()[0, 0, :, 0], [0, 1, 2, 3, 4, 200, 201])
    np.testing.assert_array_equal(past[NAMES[0]].numpy(), rows(5))


def test_one_of_many_threads_gets_the_buffer() -> None:
    cache, past = begin()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: room_for(past, 6), range(64)))
    assert sum(x is cache for x in found) == 1
    assert len(set(found)) == 64


def test_a_past_that_is_put_together_anew_is_copied() -> None:
    """Keys as values, and arrays of the host."""
    cache, past = begin()
    key, value = (past[name] for name in NAMES)
    for mixed in ({NAMES[0]: value, NAMES[1]: key}, {NAMES[0]: key, NAMES[1]: rows(5)}):
        again, _ = append(mixed, rows(1, 5))
        assert again is not cache
        np.testing.assert_array_equal(again.rows(NAMES[1], 6), rows(6))


class OnDevice:
    """A value in a device's memory, which the host sees as a copy."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory

    @classmethod
    def ortvalue_from_numpy(cls, array: Array, device: str) -> "OnDevice":
        assert device == "cuda"
        return cls(array.copy())

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape: tuple[int, ...], dtype: Any, device: str) -> "OnDevice":
        assert device == "cuda"
        return cls(np.full(shape, np.nan, dtype))  # whatever was there before

    def shape(self) -> list[int]:
        return list(self.memory.shape)

    def numpy(self) -> Array:
        return self.memory.copy()


def test_buffers_of_a_device_are_written_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cache.ort, "OrtValue", OnDevice)
    monkeypatch.setattr(onnxruntime_cache, "MIN_ROOM", 2)
    past: dict[str, Any] = dict.fromkeys(NAMES, rows(0))
    caches = set()
    for length in range(12):
        cache: Any = room_for(past, length + 1, "cuda")
        caches.add(cache)
        for name in NAMES:
            cache.values[name].memory[:, :, length] = length
        past = {name: CacheTensor(cache=cache, name=name, length=length + 1) for name in NAMES}
    assert 1 < len(caches) < 6, "a full one is replaced, others are written again"
    for tensor in past.values():
        assert tensor.shape == (1, 2, 12, 3)
        np.testing.assert_array_equal(tensor.numpy(), rows(12))
