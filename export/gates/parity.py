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
from ptp.export.gates.oracle import Oracle, Question, ask_transformers
from ptp.export.gates.tolerances import FEATURES, SCORES
from ptp.export.plan import Plan
from ptp.export.specs import GraphIO
from ptp.ptp_graph.reference import NEWLINE, Kept, crops_under_thumbnail, keep_tokens, packed_sequence

Array = NDArray[Any]
ALPHA = 0.375
"""Weight of the question in the gate: not the default, so that the input is seen to be read."""


@dataclass(frozen=True, kw_only=True)
class ImageParity:
    """How far the graph is from its oracle on one image, as `tolerances.py` measures it."""

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
        checkpoint: for its image processor and tokenizer.
        model: the loaded model.
        progress: called with images done and images in all.

    Raises:
        ParityError: the graph differs, with the image, the quantity and both values.
    """
    tiling = plan.tiling
    sizes = gate_sizes(tiling.grids, tiling.tile_size, tiling.tokens_per_side)
    results, first = [], None
    with _probed_session(path, io) as session:
        for number, size in enumerate(sizes):
            if progress:
                progress(number, len(sizes))
            grid = choose_grid(*size, tiling.grids, tiling.tile_size)
            tiles = _tiles(checkpoint, tiling, size, number)
            feeds = _feeds(io, checkpoint, model, tiles, size, grid, number)
            names = [spec.name for spec in (*io.outputs, *io.probes)]
            seen = dict(zip(names, (x[0] for x in session.run(names, feeds)), strict=True))
            first = first or (feeds, seen)
            oracle = ask_transformers(model, tiles, size, saliency_layer=plan.saliency_layer, question=_question(feeds))
            results.append(_check_image(seen, oracle, plan, size, grid))
    if first:
        _check_as_written(path, io, *first)
    return results


def _check_image(seen: dict[str, Array], oracle: Oracle, plan: Plan, size: tuple[int, int], grid: Grid) -> ImageParity:
    """Compare what the graph returned for one image, batch axis removed, with the oracle and the reference."""
    score_difference = _check_scores(seen, oracle, plan, size, grid)
    kept = keep_tokens(
        plan.schedule,
        size,
        grid,
        seen["token_saliency"],
        seen["region_weights"],
        seen.get("relevance"),
        ALPHA,
    )
    _check_choice(seen, kept, size)
    features, tolerance = seen["image_features"].astype(np.float32), FEATURES[plan.config.precision]
    count = len(kept.positions)
    difference = _row_difference(features[:count], oracle.features[kept.positions])
    _require(difference, tolerance, "image_features", size)
    _require(float(np.abs(features[count:]).max(initial=0)), 0.0, "padding after image_features", size)
    return ImageParity(
        height=size[0],
        width=size[1],
        grid=grid,
        num_kept=count,
        feature_difference=difference,
        score_difference=score_difference,
    )


def _check_scores(seen: dict[str, Array], oracle: Oracle, plan: Plan, size: tuple[int, int], grid: Grid) -> float:
    """Return the largest relative difference of the scores that decide the choice."""
    tiles, side = oracle.token_saliency.shape[0], plan.schedule.side
    pairs = {"token_saliency": (seen["token_saliency"][:tiles], oracle.token_saliency)}
    sequence = np.array(packed_sequence(*size, grid, side))
    visual = np.flatnonzero(sequence != NEWLINE)  # positions of visual tokens in the packed sequence
    sources = sequence[visual]
    if plan.config.instruction == "similarity" and oracle.similarity is not None:
        pairs["relevance"] = (seen["relevance"][:tiles], oracle.similarity)
    if plan.config.instruction == "attention" and oracle.attention is not None:
        pairs["relevance"] = (seen["relevance"].reshape(-1)[sources], oracle.attention[visual])
    pairs["region_weights"] = (seen["region_weights"], _expected_regions(oracle, plan, size, grid, sources))
    differences = {name: _difference(*pair) for name, pair in pairs.items()}
    for name, difference in differences.items():
        _require(difference, SCORES[plan.config.precision], name, size)
    return max(differences.values())


def _expected_regions(oracle: Oracle, plan: Plan, size: tuple[int, int], grid: Grid, sources: Array) -> Array:
    """Return the region weights (T,) by transformers' values, over the regions that have a token in `sources`."""
    side, config = plan.schedule.side, plan.config
    expected = np.zeros(plan.schedule.num_tiles)
    regions = [tile for tile in np.unique(sources // side**2) if tile > 0 or config.thumbnail == "as_region"]
    if not regions:
        return expected
    if config.region == "uniform":
        expected[regions] = 1
    elif config.region == "cls_cosine":
        logits = oracle.region_cosines[regions].astype(np.float64) / plan.region_temperature
        expected[regions] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    else:
        covered = crops_under_thumbnail(*size, grid, side)
        shares = [oracle.token_saliency[0][covered == tile].sum() if tile else oracle.token_saliency[0].sum()
                  for tile in regions]  # fmt: skip
        expected[regions] = shares
    return expected


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


def _require(difference: float, tolerance: float, name: str, size: tuple[int, int]) -> None:
    if not difference <= tolerance:
        raise ParityError(
            f"{name} differs from transformers on a {size[0]}×{size[1]} image",
            got=f"a relative difference of {difference:.2g}",
            expected=f"at most {tolerance:.0e}",
        )


def _difference(found: Array, expected: Array) -> float:
    """Return max |found − expected| / max |expected|; infinite if anything is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    difference = float(np.abs(found - expected).max(initial=0))
    return difference / max(float(np.abs(expected).max(initial=0)), 1e-30) if difference else 0.0


def _row_difference(found: Array, expected: Array) -> float:
    """Return the largest |found − expected| / |expected| over rows (Euclidean), so that no row hides behind another."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    lengths = np.linalg.norm(expected, axis=-1)
    lengths = np.maximum(lengths, 1e-3 * lengths.max(initial=1e-30))
    return float((np.linalg.norm(found - expected, axis=-1) / lengths).max(initial=0))


def _tiles(checkpoint: Checkpoint, tiling: Tiling, size: tuple[int, int], seed: int) -> Array:
    """Return the real tiles (tiles, 3, S, S) that transformers' image processor makes of a test image."""
    pinpoints = [[rows * tiling.tile_size, columns * tiling.tile_size] for rows, columns in tiling.grids]
    processed = checkpoint.processor.image_processor(
        gate_image(size, seed), image_grid_pinpoints=pinpoints, input_data_format="channels_last", return_tensors="np"
    )
    tiles: Array = np.asarray(processed["pixel_values"][0], dtype=np.float32)
    return tiles


def _feeds(
    io: GraphIO, checkpoint: Checkpoint, model: Any, tiles: Array, size: tuple[int, int], grid: Grid, seed: int
) -> dict[str, Array]:
    """Return the graph's inputs for one image, with a random prompt: prefix, question, and a suffix after it."""
    empty = {spec.name: np.zeros([int(n) for n in spec.shape], spec.dtype) for spec in io.inputs}
    feeds = empty | {"image_sizes": np.array([size], np.int64), "tile_grid": np.array([grid], np.int64)}
    feeds["pixel_values"][0, : len(tiles)] = tiles
    if "prompt_embeds" in feeds:
        max_prompt = feeds["prompt_embeds"].shape[1]
        length = max(1, max_prompt * 3 // 4)  # the rest is padding
        ids = np.random.default_rng(seed).integers(0, len(checkpoint.processor.tokenizer), length)
        with torch.inference_mode():
            feeds["prompt_embeds"][0, :length] = model.get_input_embeddings()(torch.from_numpy(ids)).numpy()
        feeds["alpha"][:] = ALPHA
        feeds["prompt_mask"][0, :length] = True
        feeds["question_mask"][0, length // 3 : max(length * 5 // 6, length // 3 + 1)] = True
        feeds["prefix_length"][:] = length // 4
    return feeds


def _question(feeds: dict[str, Array]) -> Question | None:
    if "prompt_embeds" not in feeds:
        return None
    real = feeds["prompt_mask"][0]
    return Question(
        embeds=feeds["prompt_embeds"][0, real],
        mask=feeds["question_mask"][0, real],
        prefix_length=int(feeds["prefix_length"][0]),
    )


def _check_as_written(path: Path, io: GraphIO, feeds: dict[str, Array], seen: dict[str, Array]) -> None:
    """Run the graph without its probes: with fewer outputs the runtime may fuse otherwise, and must choose the same."""
    names = [spec.name for spec in io.outputs]
    found = dict(zip(names, (x[0] for x in _session(path).run(names, feeds)), strict=True))
    for name in names[1:]:
        if not np.array_equal(found[name], seen[name]):
            raise ParityError(f"{name} changes when the probes are hidden", got=found[name], expected=seen[name])
    _require(_row_difference(found[names[0]], seen[names[0]]), FEATURES["fp32"], names[0], (0, 0))


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
        yield _session(probed)
    finally:
        probed.unlink(missing_ok=True)


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # the oracle needs the memory between two runs
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
