"""Parity vectors: inputs of the three graphs, and what transformers itself computes from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptp.anyres import PackedLayout
from ptp.bundle.manifest import MAX_DIMENSION, Manifest
from ptp.bundle.reader import Bundle
from ptp.bundle.tensors import read_tensors, write_tensors
from ptp.errors import SchemaError

VECTORS_NAME = "parity/vectors.safetensors"
MAX_VECTORS = 16
MAX_TOKENS = 8
"""Tokens of an answer that are recorded."""


@dataclass(frozen=True, kw_only=True)
class Vector:
    """One image with its question: what the graphs are fed, and what they must return.

    t tiles, L text tokens, n kept tokens, k answered ones. Floating-point values are the oracle's, in the graphs' type.

    Attributes:
        tiles: (t, 3, S, S) uint8, thumbnail and crops before normalisation.
        image_size: (2,) int64, height and width in pixels.
        tile_grid: (2,) int64, rows and columns of the crop grid.
        input_ids: (L,) int64, text tokens of the prompt, prefix then suffix.
        prefix_length: (1,) int64, how many of them stand before the image.
        question_mask: (L,) bool, tokens of the user's question.
        inputs_embeds: (L, H), expected of `embed_tokens`.
        image_positions: (n,) int64, expected of `vision_encoder` at the bundle's own alpha and keep, without padding.
        image_features: (n, H), likewise; with the embeddings the decoder's input.
        tile_budgets: (T,) int32, likewise.
        packed_length: (1,) int64, likewise.
        effective_alpha: (1,) float32, likewise; 0 where the question has no say.
        logits: (V,) float32, expected of `decoder_model_merged` after the prompt.
        tokens: (k,) int64, the first tokens of the greedy answer.
        leads: (k,) float32, how far each token's logit is above the next best, divided by the largest |logit|.
    """

    tiles: NDArray[np.uint8]
    image_size: NDArray[np.int64]
    tile_grid: NDArray[np.int64]
    input_ids: NDArray[np.int64]
    prefix_length: NDArray[np.int64]
    question_mask: NDArray[np.bool_]
    inputs_embeds: NDArray[Any]
    image_positions: NDArray[np.int64]
    image_features: NDArray[Any]
    tile_budgets: NDArray[np.int32]
    packed_length: NDArray[np.int64]
    effective_alpha: NDArray[np.float32]
    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]
    leads: NDArray[np.float32]


TENSORS = tuple(field.name for field in fields(Vector))


def write_vectors(path: Path, vectors: Sequence[Vector]) -> None:
    """Write vectors to disk, into a folder that is made."""
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, {f"{i}.{name}": getattr(vector, name) for i, vector in enumerate(vectors) for name in TENSORS})


def read_vectors(bundle: Bundle) -> tuple[Vector, ...]:
    """Read a bundle's vectors, and refuse any that its graphs could not be fed.

    Raises:
        SchemaError: the file is malformed, or a tensor's type, shape or values do not suit the manifest.
    """
    path = bundle.path(bundle.manifest.vectors)
    try:
        return _vectors(read_tensors(bundle.read(bundle.manifest.vectors)), bundle.manifest)
    except ValueError as error:
        raise SchemaError(
            f"{path} holds no parity vectors of this bundle", got=error, do="export the bundle again"
        ) from error


def _vectors(tensors: dict[str, NDArray[Any]], manifest: Manifest) -> tuple[Vector, ...]:
    count = max(1, len({name.partition(".")[0] for name in tensors}))
    if count > MAX_VECTORS:
        raise ValueError(f"{count} vectors, more than {MAX_VECTORS}")
    expected = {f"{i}.{name}" for i in range(count) for name in TENSORS}
    if missing := sorted(expected - set(tensors)):
        raise ValueError(f"no tensor {', '.join(missing[:4])}")
    if unknown := sorted(set(tensors) - expected):
        raise ValueError(f"unknown tensor {', '.join(unknown[:4])}")
    vectors = tuple(Vector(**{name: tensors[f"{i}.{name}"] for name in TENSORS}) for i in range(count))
    for i, vector in enumerate(vectors):
        problem = next(_misfits(vector, manifest), None) or next(_wrong_values(vector, manifest), None)
        if problem:
            raise ValueError(f"{i}.{problem}")
    return vectors


def _misfits(vector: Vector, manifest: Manifest) -> Iterator[str]:
    """Yield every tensor whose type or shape is not what the manifest's sizes make it."""
    text, tiling = manifest.language_model, manifest.tiling
    floats = "float16" if manifest.model.precision == "fp16" else "float32"
    tiles, length, count, tokens = (
        len(x) if x.ndim else 0 for x in (vector.tiles, vector.input_ids, vector.image_positions, vector.tokens)
    )
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "tiles": ("uint8", (tiles, 3, tiling.tile_size, tiling.tile_size)),
        "image_size": ("int64", (2,)),
        "tile_grid": ("int64", (2,)),
        "input_ids": ("int64", (length,)),
        "prefix_length": ("int64", (1,)),
        "question_mask": ("bool", (length,)),
        "inputs_embeds": (floats, (length, text.hidden_size)),
        "image_positions": ("int64", (count,)),
        "image_features": (floats, (count, text.hidden_size)),
        "tile_budgets": ("int32", (tiling.max_tiles,)),
        "packed_length": ("int64", (1,)),
        "effective_alpha": ("float32", (1,)),
        "logits": ("float32", (text.vocab_size,)),
        "tokens": ("int64", (tokens,)),
        "leads": ("float32", (tokens,)),
    }
    for name, (dtype, shape) in expected.items():
        array = getattr(vector, name)
        if array.dtype != dtype or array.shape != shape:
            yield f"{name} is {array.dtype} {list(array.shape)} instead of {dtype} {list(shape)}"


def _wrong_values(vector: Vector, manifest: Manifest) -> Iterator[str]:
    """Yield every tensor with values that no image, prompt or answer of this bundle has."""
    vocabulary, length = manifest.language_model.vocab_size, len(vector.input_ids)
    height, width = vector.image_size.tolist()
    grid = tuple(vector.tile_grid.tolist())
    for name in TENSORS:
        if not np.isfinite(getattr(vector, name)).all():
            yield f"{name} holds numbers that are not finite"
    if grid not in manifest.tiling.grids or len(vector.tiles) != 1 + grid[0] * grid[1]:
        yield f"tile_grid is {grid} with {len(vector.tiles)} tiles"
        return
    if not 1 <= min(height, width) <= max(height, width) <= MAX_DIMENSION:
        yield f"image_size is {height}, {width}"
        return
    packed = PackedLayout(height=height, width=width, grid=grid, side=manifest.tiling.tokens_per_side).length
    positions = vector.image_positions
    checks = {
        "input_ids": 1 <= length <= manifest.prompting.max_prompt and _within(vector.input_ids, vocabulary),
        "prefix_length": _within(vector.prefix_length, length + 1),
        "packed_length": vector.packed_length[0] == packed,
        "image_positions": 1 <= len(positions) <= manifest.pruning.num_kept
        and _within(positions, packed)
        and bool((np.diff(positions) > 0).all()),
        "tile_budgets": _within(vector.tile_budgets, manifest.tiling.tokens_per_tile + 1),
        "tokens": len(vector.tokens) <= MAX_TOKENS and _within(vector.tokens, vocabulary),
    }
    yield from (f"{name} holds values that cannot be" for name, is_right in checks.items() if not is_right)


def _within(values: NDArray[Any], end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())
