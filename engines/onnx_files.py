"""Which files an ONNX graph reads its weights from, without the `onnx` package: the runtime does not need it.

An ONNX file is a protocol buffer: fields of a number and a type, those of type 2 with a length and bytes. The numbers
below are those of onnx.proto; what they do not lead to is skipped unread.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from ptp.errors import IntegrityError

Tree = dict[int, "Tree"]

_TENSOR: Tree = {13: {}}  # TensorProto.external_data
_GRAPH: Tree = {1: {5: {5: _TENSOR}}, 5: _TENSOR}  # GraphProto.node.attribute.t and .initializer
_MODEL: Tree = {7: _GRAPH}  # ModelProto.graph

_KEY, _VALUE = 1, 2  # of a StringStringEntryProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """Return the files that a graph's weights are in, relative to the graph's folder; none if it holds them itself.

    Subgraphs are not looked into: no graph of a bundle has any.

    Raises:
        IntegrityError: the file is no protocol buffer, or one that was cut off.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries = (dict(_pair(data, *entry)) for entry in _entries(data, 0, len(data), _MODEL))
            return {entry[_VALUE].decode() for entry in entries if entry.get(_KEY) == b"location"}
    except (KeyError, IndexError, ValueError) as error:
        raise IntegrityError(f"{path} is not an ONNX graph", got=error, do="export the bundle again") from error


def _pair(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield key and value of a StringStringEntryProto."""
    for number, inner_start, inner_stop in _fields(data, start, stop):
        yield number, data[inner_start:inner_stop]


def _entries(data: mmap.mmap, start: int, stop: int, tree: Tree) -> Iterator[tuple[int, int]]:
    """Yield where each message begins and ends that a tree of field numbers leads to."""
    if not tree:
        yield start, stop
        return
    for number, inner_start, inner_stop in _fields(data, start, stop):
        if number in tree:
            yield from _entries(data, inner_start, inner_stop, tree[number])


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of each field of bytes in a message."""
    while start < stop:
        key, start = _varint(data, start)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, start = _varint(data, start)
        elif kind in (_FIXED32, _FIXED64):
            start += 4 if kind == _FIXED32 else 8
        elif kind == _BYTES:
            length, start = _varint(data, start)
            if start + length > stop:
                raise ValueError(f"field {number} ends behind its message")
            yield number, start, start + length
            start += length
        else:
            raise ValueError(f"field {number} is of type {kind}")


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """Return a number written in seven bits a byte, and where it ends."""
    value = 0
    for position in range(10):
        byte = data[start + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, start + position + 1
    raise ValueError("a number of more than ten bytes")
