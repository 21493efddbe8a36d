"""Measure a large bundle's speed where its weights cannot go: leave them behind, and draw random ones there.

    python -m ptp.benchmarks.random_weights strip BUNDLE SMALL     # here
    python -m ptp.benchmarks.random_weights fill SMALL             # there

`strip` copies a bundle without the tensors of 1 MiB and more; `fill` draws those. Speed depends on sizes, not on what
the weights were trained for. The answers mean nothing, and what was compared at export no longer holds.
"""

import argparse
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ptp.bundle.contract import GRAPH_FOLDER
from ptp.bundle.reader import read_manifest
from ptp.bundle.writer import file_entry, write_manifest
from ptp.errors import BundleError, PtpError

LARGE = 1 << 20
"""Bytes from which a tensor is drawn."""

DRAWN = 1 << 24
"""Numbers that are drawn; a larger tensor repeats them."""

CONSTANTS = "constants.npz"


def main() -> None:
    """Strip or fill a bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("strip")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("small", type=Path)
    verb = verbs.add_parser("fill")
    verb.add_argument("small", type=Path)
    options = parser.parse_args()
    try:
        if options.verb == "strip":
            strip(options.bundle, options.small)
        else:
            fill(options.small)
    except PtpError as error:
        raise SystemExit(f"error: {error}") from error


def strip(bundle: Path, small: Path) -> None:
    """Copy a bundle; of the files beside its graphs, small tensors alone.

    Raises:
        BundleError: its weights are quantised.
    """
    if read_manifest(bundle).model.quantization:
        raise BundleError(f"{bundle} has quantised weights", expected="float16 or float32")
    shutil.copytree(bundle, small, ignore=shutil.ignore_patterns("*.onnx_data"))
    kept: dict[str, Any] = {}
    for tensor in outside(small):
        file, offset, length = span(tensor)
        if not is_large(tensor):
            kept[f"{file}:{offset}"] = np.fromfile(bundle / file, np.uint8, count=length, offset=offset)
    np.savez_compressed(small / CONSTANTS, **kept)


def fill(small: Path) -> None:
    """Write the files beside the graphs: small tensors as they were, large ones normal, of deviation 1 / √rows."""
    random = np.random.default_rng(0).standard_normal(DRAWN, np.float32)
    with np.load(small / CONSTANTS) as constants:
        kept = dict(constants)
    written = dict[str, None]()
    for tensor in outside(small):
        file, offset, _ = span(tensor)
        written[file] = None
        with (small / file).open("r+b" if (small / file).exists() else "wb") as opened:
            opened.seek(offset)
            if not is_large(tensor):
                opened.write(kept[f"{file}:{offset}"].tobytes())
                continue
            numbers, dtype = math.prod(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type)
            values = (random[:numbers] * tensor.dims[0] ** -0.5).astype(dtype)
            for start in range(0, numbers, DRAWN):
                opened.write(values[: numbers - start].data)
    manifest = read_manifest(small)
    entries = {name: file_entry(small / name) for name in written}
    write_manifest(small, manifest.model_copy(update={"files": manifest.files | entries}))
    (small / CONSTANTS).unlink()
    print(f"{sum(entry.bytes for entry in entries.values()):,} bytes of weights")


def outside(bundle: Path) -> Iterator[TensorProto]:
    """Return the tensors that stand beside their graphs."""
    for graph in sorted((bundle / GRAPH_FOLDER).glob("*.onnx")):
        tensors = onnx.load(graph, load_external_data=False).graph.initializer
        yield from (tensor for tensor in tensors if uses_external_data(tensor))


def span(tensor: TensorProto) -> tuple[str, int, int]:
    """Return where a tensor stands: the file in the bundle, the first byte and how many."""
    info = ExternalDataInfo(tensor)
    return f"{GRAPH_FOLDER}{info.location}", int(info.offset or 0), int(info.length or 0)


def is_large(tensor: TensorProto) -> bool:
    """Return whether a tensor is drawn: weights are, tables of indices are not."""
    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and span(tensor)[2] >= LARGE


if __name__ == "__main__":
    main()
