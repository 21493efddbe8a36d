"""Write large weights to a file one after the other, and go on after an interruption."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

ALIGNMENT = 64
PAGE, LARGE = 4096, 1 << 20
"""Large tensors start at whole pages, so that they can be mapped by themselves."""

SYNC_BYTES = 1 << 30
"""Bytes after which what was written is certain to be on disk; a further attempt starts there."""

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in all."""


def write_tensors(
    tensors: Sequence[ir.TensorProtocol], path: Path, progress: Progress | None = None
) -> list[ir.ExternalTensor]:
    """Write tensors to a file and return them as references to it; one at a time is in memory.

    A file that an interrupted attempt left is completed: its first bytes stay, as many as are certain to be on disk.

    Args:
        tensors: what to write; of an attempt that goes on, the same as before.
        path: where to.
        progress: called after each of them.
    """
    offsets, total = [], 0
    for tensor in tensors:
        alignment = PAGE if tensor.nbytes >= LARGE else ALIGNMENT
        total = -(-total // alignment) * alignment
        offsets.append(total)
        total += tensor.nbytes
    mark = path.with_name(f".{path.name}.synced")
    # a full disk leaves an empty mark
    synced = int(mark.read_text() or 0) if mark.exists() else 0
    with path.open("r+b" if synced else "wb") as file:
        for tensor, offset in zip(tensors, offsets, strict=True):
            end = offset + tensor.nbytes
            if end > synced:
                file.seek(offset)
                file.write(tensor.tobytes())
            if end - synced >= SYNC_BYTES:
                file.flush()
                os.fsync(file.fileno())
                mark.write_text(str(end))
                synced = end
            if progress:
                progress(end, total)
        file.flush()
        os.fsync(file.fileno())
    mark.unlink(missing_ok=True)
    return [
        ir.ExternalTensor(
            path.name, offset, tensor.nbytes, tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "", base_dir=path.parent,
        )
        for tensor, offset in zip(tensors, offsets, strict=True)
    ]  # fmt: skip
