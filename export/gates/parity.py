"""Gate: the written graph in ONNX Runtime against transformers and the readable reference, image by image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from ptp.anyres import Grid, choose_grid
from ptp.bundle.manifest import Tiling
from ptp.errors import ParityError
from ptp.export.checkpoint import Checkpoint
from ptp.export.gates.images import gate_image, gate_sizes
from ptp.export.gates.oracle import Oracle, ask_transformers
from ptp.export.gates.tolerances import FEATURES, SCORES
from ptp.export.plan import Plan
from ptp.export.specs import GraphIO
from ptp.ptp_graph.reference import Kept, keep_tokens

Array = NDArray[Any]
ALPHA = 0.375
"""Weight of the question in the gate: not the default, so that the input is seen to be read."""


@dataclass(frozen=True, kw_only=True)
class ImageParity:
    """How far the graph is from its oracle on one image; differences are relative to the oracle's largest value."""

    height: int
    width: int
    grid: Grid
    num_kept: int
    feature_difference: float
    score_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def check_parity(
    path: Path,
    io: GraphIO,
    plan: Plan,
    checkpoint: Checkpoint,
    model: Any,
    progress: Callable[[int, int], None] | None = None,
) -> list[ImageParity]:
    """Compare a written vision graph with transformers and with the reference.

    The scores are compared with transformers' within the table's tolerance. The choice must then be exactly the
    reference's on the graph's own scores: budgets, kept positions, packed length. The kept rows must be
    `get_image_features`' rows at those positions.

    Args:
        path: the vision graph as written.
        io: its contract; the probes must be inner values of the graph.
        plan: what is being exported.
        checkpoint: for its image processor.
        model: the loaded model.
        progress: called with images done and images in all.

    Raises:
        ParityError: the graph differs, with the image, the quantity and both values.
    """
    tiling = plan.tiling
    sizes = gate_sizes(tiling.grids, tiling.tile_size, tiling.tokens_per_side)
    results = []
    with _probed_session(path, io) as session:
        for number, size in enumerate(sizes):
            if progress:
                progress(number, len(sizes))
            results.append(_check_image(session, io, plan, checkpoint, model, size, seed=number))
    return results


def _check_image(
    session: Any, io: GraphIO, plan: Plan, checkpoint: Checkpoint, model: Any, size: tuple[int, int], *, seed: int
) -> ImageParity:
    tiling, schedule, config = plan.tiling, plan.schedule, plan.config
    grid = choose_grid(*size, tiling.grids, tiling.tile_size)
    tiles = _tiles(checkpoint, tiling, size, seed)
    feeds = _feeds(io, model, tiles, size, grid, seed)
    names = [spec.name for spec in (*io.outputs, *io.probes)]
    seen = dict(zip(names, (x[0] for x in session.run(names, feeds)), strict=True))

    question = feeds["prompt_embeds"][feeds["question_mask"]] if "prompt_embeds" in feeds else None
    oracle = ask_transformers(model, tiles, size, saliency_layer=plan.saliency_layer, question_embeds=question)
    score_difference = _check_scores(seen, oracle, plan, size)
    kept = keep_tokens(
        schedule,
        size,
        grid,
        seen["token_saliency"],
        seen["region_weights"],
        seen.get("relevance"),
        ALPHA,
    )
    _check_choice(seen, kept, size)
    features = seen["image_features"][: len(kept.positions)].astype(np.float32)
    difference = _difference(features, oracle.features[kept.positions])
    _require(difference <= FEATURES[config.precision], "image_features", size, difference, FEATURES[config.precision])
    if np.abs(seen["image_features"][len(kept.positions) :]).max(initial=0) != 0:
        raise ParityError(f"padding rows are not zero on a {size[0]}×{size[1]} image")
    return ImageParity(
        height=size[0],
        width=size[1],
        grid=grid,
        num_kept=len(kept.positions),
        feature_difference=difference,
        score_difference=score_difference,
    )


def _check_scores(seen: dict[str, Array], oracle: Oracle, plan: Plan, size: tuple[int, int]) -> float:
    """Return the largest relative difference of the scores that decide the choice."""
    tiles, tolerance = oracle.token_saliency.shape[0], SCORES[plan.config.precision]
    pairs = {"token_saliency": (seen["token_saliency"][:tiles], oracle.token_saliency)}
    if oracle.relevance is not None:
        pairs["relevance"] = (seen["relevance"][:tiles], oracle.relevance)
    weights = seen["region_weights"]
    real = np.flatnonzero(weights)
    if real.size:
        logits = oracle.region_cosines[real].astype(np.float64) / plan.region_temperature
        shares = np.exp(logits - logits.max())
        pairs["region_weights"] = (weights[real], shares / shares.sum())
    differences = {name: _difference(*pair) for name, pair in pairs.items()}
    for name, difference in differences.items():
        _require(difference <= tolerance, name, size, difference, tolerance)
    return max(differences.values())


def _check_choice(seen: dict[str, Array], kept: Kept, size: tuple[int, int]) -> None:
    pairs = {
        "tile_budgets": (seen["tile_budgets"].tolist(), kept.tile_budgets),
        "num_valid": (int(seen["num_valid"]), len(kept.positions)),
        "packed_length": (int(seen["packed_length"]), kept.packed_length),
        "image_positions": (seen["image_positions"][: len(kept.positions)].tolist(), kept.positions),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise ParityError(
                f"{name} differs from the reference on a {size[0]}×{size[1]} image", got=found, expected=expected
            )


def _require(holds: bool, name: str, size: tuple[int, int], difference: float, tolerance: float) -> None:
    if not holds:
        raise ParityError(
            f"{name} differs from transformers on a {size[0]}×{size[1]} image",
            got=f"a relative difference of {difference:.2g}",
            expected=f"at most {tolerance:.0e}",
        )


def _difference(found: Array, expected: Array) -> float:
    """Return max |found − expected| / max |expected|; infinite if anything is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30))


def _tiles(checkpoint: Checkpoint, tiling: Tiling, size: tuple[int, int], seed: int) -> Array:
    """Return the real tiles (tiles, 3, S, S) that transformers' image processor makes of a test image."""
    pinpoints = [[rows * tiling.tile_size, columns * tiling.tile_size] for rows, columns in tiling.grids]
    processed = checkpoint.processor.image_processor(
        gate_image(size, seed), image_grid_pinpoints=pinpoints, input_data_format="channels_last", return_tensors="np"
    )
    tiles: Array = np.asarray(processed["pixel_values"][0], dtype=np.float32)
    return tiles


def _feeds(io: GraphIO, model: Any, tiles: Array, size: tuple[int, int], grid: Grid, seed: int) -> dict[str, Array]:
    """Return the graph's inputs for one image, with a random prompt of which the last two thirds are the question."""
    empty = {spec.name: np.zeros([int(n) for n in spec.shape], spec.dtype) for spec in io.inputs}
    feeds = empty | {"image_sizes": np.array([size], np.int64), "tile_grid": np.array([grid], np.int64)}
    feeds["pixel_values"][0, : len(tiles)] = tiles
    if "prompt_embeds" in feeds:
        max_prompt = feeds["prompt_embeds"].shape[1]
        length = max(1, max_prompt * 3 // 4)  # the rest is padding
        ids = np.random.default_rng(seed).integers(0, model.config.text_config.vocab_size, length)
        with torch.inference_mode():
            feeds["prompt_embeds"][0, :length] = model.get_input_embeddings()(torch.from_numpy(ids)).numpy()
        feeds["alpha"][:] = ALPHA
        feeds["prompt_mask"][0, :length] = True
        feeds["question_mask"][0, length // 3 : length] = True
        feeds["prefix_length"][:] = length // 3
    return feeds


@contextmanager
def _probed_session(path: Path, io: GraphIO) -> Iterator[Any]:
    """Yield a session over the written graph with its probes as further outputs."""
    model = ir.load(path)
    values = {value.name: value for node in model.graph for value in node.outputs}
    missing = [spec.name for spec in io.probes if spec.name not in values]
    if missing:
        raise ParityError("inner values are missing from the graph", got=", ".join(missing))
    model.graph.outputs.extend(values[spec.name] for spec in io.probes)
    probed = path.with_name(f".{path.name}.probed")
    ir.save(model, probed)  # weights in external data are referred to, not written again
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        yield onnxruntime.InferenceSession(probed, options, providers=["CPUExecutionProvider"])
    finally:
        probed.unlink(missing_ok=True)
