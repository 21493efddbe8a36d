"""What the vision graph returned, checked against its meaning: a graph from a stranger may return anything.

`cpp/src/vision.cpp` has the same checks in the same words.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptp.bundle import Manifest
from ptp.errors import BackendError

ALPHA_ROUNDING = 1e-3
"""A quotient in 0 to 1 may be rounded beyond it."""

Row = dict[str, NDArray[Any]]


def image_rows(outputs: Mapping[str, NDArray[Any]], manifest: Manifest, num_kept: int, images: int) -> list[Row]:
    """Return the outputs of each image.

    Args:
        outputs: what the graph returned, by name.
        manifest: what it must suit.
        num_kept: K of the call.
        images: images of the call, at most B; further rows are copies.

    Raises:
        BackendError: an output has another shape or type, or values that no image gives.
    """
    _check_shapes(outputs, manifest, num_kept)
    rows = [{name: value[i] for name, value in outputs.items()} for i in range(images)]
    for row in rows:
        _check_values(row, manifest, num_kept)
    return rows


def _check_shapes(outputs: Mapping[str, NDArray[Any]], manifest: Manifest, num_kept: int) -> None:
    for spec in manifest.graphs.vision_encoder.outputs:
        shape = tuple(size if isinstance(size, int) else num_kept for size in spec.shape)
        found = outputs[spec.name]
        if found.shape != shape or found.dtype != spec.dtype:
            raise BackendError(
                f"the vision graph returned an unexpected {spec.name}",
                got=f"{found.dtype} {list(found.shape)}",
                expected=f"{spec.dtype} {list(shape)}",
            )


def _check_values(row: Row, manifest: Manifest, num_kept: int) -> None:
    tiling = manifest.tiling
    valid, packed, budgets = int(row["num_valid"]), int(row["packed_length"]), row["tile_budgets"].astype(np.int64)
    if not 1 <= valid <= num_kept:
        raise _impossible("num_valid", valid, f"1 to {num_kept}")
    if not 1 <= packed <= tiling.longest:
        raise _impossible("packed_length", packed, f"1 to {tiling.longest}")
    if not np.isfinite(row["image_features"][:valid]).all():
        raise _impossible("image_features", None, "finite numbers")
    positions = row["image_positions"][:valid]
    if positions[0] < 0 or positions[-1] >= packed or (positions[1:] <= positions[:-1]).any():
        raise _impossible("image_positions", None, f"ascending ones below {packed}")
    if budgets.min() < 0 or budgets.max() > tiling.tokens_per_tile or budgets.sum() > num_kept:
        raise _impossible("tile_budgets", None, f"0 to {tiling.tokens_per_tile} each, {num_kept} at most together")
    if "effective_alpha" in row:
        alpha = float(row["effective_alpha"])
        if not -ALPHA_ROUNDING <= alpha <= 1 + ALPHA_ROUNDING:
            raise _impossible("effective_alpha", f"{alpha:g}", "0 to 1")


def _impossible(name: str, got: object, expected: str) -> BackendError:
    return BackendError(f"the vision graph returned impossible {name}", got=got, expected=expected)
