"""Files of named tensors, in safetensors' format.

The length of the header (8 bytes, little-endian), the header as JSON, the tensors' bytes. No language needs a
library to read it, nothing in it is compressed or executed, and the file's own size bounds what reading it takes.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from ptp.bundle.schema import MAX_RANK, Bytes, Count, Model

Array = NDArray[Any]

MAX_HEADER_BYTES = 1 << 20

TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in TYPES.items()}


class _Entry(Model):
    """A tensor of the header."""

    dtype: Literal["F32", "F16", "I64", "I32", "U8", "BOOL"]
    shape: tuple[Count, ...] = Field(max_length=MAX_RANK)
    data_offsets: tuple[Bytes, Bytes]


_Header = TypeAdapter(dict[str, _Entry])


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write tensors to disk; the same tensors give the same bytes."""
    header, data, start = {}, [], 0
    # wide types first, so that every tensor is aligned
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        end = start + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
        data.append(array.tobytes())
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *data]))


def read_tensors(data: bytes) -> dict[str, Array]:
    """Return the tensors of a file, given as its bytes, that a stranger may have written; read-only.

    Raises:
        ValueError: it is malformed, or a tensor lies outside it.
    """
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length])
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        entries = _Header.validate_json(json.dumps(header), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"header: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except RecursionError as error:
        raise ValueError("header: nested too deeply") from error
    body = memoryview(data)[8 + length :]
    return {name: _tensor(name, entry, body) for name, entry in entries.items()}


def _tensor(name: str, entry: _Entry, body: memoryview) -> Array:
    dtype, (start, end) = TYPES[entry.dtype], entry.data_offsets
    if not 0 <= start <= end <= len(body) or end - start != math.prod(entry.shape) * dtype.itemsize:
        raise ValueError(f"{name} {list(entry.shape)} at bytes {start} to {end} of {len(body)}")
    if dtype == TYPES["BOOL"] and max(body[start:end], default=0) > 1:
        raise ValueError(f"{name} holds what is neither true nor false")
    return np.frombuffer(body[start:end], dtype).reshape(entry.shape)
