"""Gate: the written graph in ONNX Runtime against transformers and the readable reference, image by image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from ptp.alpha import AUTO_INPUT
from ptp.anyres import Grid, choose_grid
from ptp.bundle.manifest import Tiling
from ptp.errors import ParityError
from ptp.export.checkpoint import Checkpoint
from ptp.export.gates.images import gate_image, gate_sizes
from ptp.export.gates.oracle import Oracle, Question, ask_transformers
from ptp.export.plan import Plan
from ptp.export.specs import FLOAT, GraphIO
from ptp.peak_memory import give_back
from ptp.ptp_graph.reference import (
    NEWLINE,
    Kept,
    adaptive_alpha,
    crops_under_thumbnail,
    keep_tokens,
    packed_sequence,
)
from ptp.ptp_graph.schedule import Schedule
from ptp.tolerances import FEATURES, SCORES, ask_exact, row_difference, value_difference

Array = NDArray[Any]
ALPHA = 0.375
"""Weight of the question on half of the images: not the default, so that the input is seen to be read."""


@dataclass(frozen=True, kw_only=True)
class ImageParity:
    """How far the graph is from its oracle on one image at one K, as `src/ptp/tolerances.py` measures it."""

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
    paths: Sequence[Path],
    plan: Plan,
    checkpoint: Checkpoint,
    model: Any,
    progress: Callable[[int, int], None] | None = None,
) -> list[ImageParity]:
    """Compare a written vision graph, in each of its forms, with transformers and with the reference.

    The scores are compared with transformers' within the table's tolerance. The choice must then be exactly the
    reference's on the graph's own scores: budgets, kept positions, packed length. The kept rows must be
    `get_image_features`' rows at those positions.

    Args:
        paths: the forms as written; the contract's probes must be inner values of each.
        plan: what is being exported.
        checkpoint: for its image processor and tokenizer.
        model: the loaded model.
        progress: called with steps done and steps in all: calls of each form, and images of transformers.

    Returns:
        the figures of the first form, for each image at each K that it was seen at.

    Raises:
        ParityError: a graph differs, with the image, the quantity and both values.
    """
    io = plan.vision_io
    tiling, batch = plan.tiling, plan.config.batch
    sizes = gate_sizes(tiling.grids, tiling.tile_size, tiling.tokens_per_side)
    schedules = _schedules(plan)
    cases = [_case(number, size, plan, checkpoint, model) for number, size in enumerate(sizes)]
    calls, every = [], 2 * len(schedules)  # every K, and both ways to weigh the question
    for turn in range(max(-(-len(cases) // batch), every)):
        numbers = [(turn * batch + row) % len(cases) for row in range(batch)]
        schedule = schedules[turn % len(schedules)]
        given = turn % every < len(schedules)
        alphas = [ALPHA if given or row % 2 else AUTO_INPUT for row in range(batch)]
        feeds = _feeds(io, [cases[number] for number in numbers], alphas, schedule)
        calls.append(Call(schedule=schedule, numbers=numbers, alphas=alphas, feeds=feeds))
    steps, done = len(calls) * len(paths) + len(cases), 0

    def step() -> None:
        nonlocal done
        if progress:
            progress(done, steps)
        done += 1

    # first the graphs, then transformers: what the two need is not in memory at once
    seen = {path: _run(path, io, calls, step) for path in paths}
    for path, found in seen.items():
        _check_as_written(path, io, calls[:every], found[:every])
    checked: dict[tuple[int, int], ImageParity] = {}
    for number, case in enumerate(cases):
        step()
        oracle = ask_transformers(
            model, case.tiles, case.size, saliency_layer=plan.saliency_layer, question=case.question
        )
        for index, call in enumerate(calls):
            for row in (row for row, other in enumerate(call.numbers) if other == number):
                for path in reversed(paths):
                    one = {name: values[row] for name, values in seen[path][index].items()}
                    may_branch = path != paths[0]
                    figures = _check_image(one, case, plan, call, row, oracle, may_branch=may_branch)
                checked[number, call.schedule.num_kept] = figures
    return list(checked.values())


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the graph.

    Attributes:
        schedule: the sizes at its K.
        numbers: which images it is fed.
        alphas: the input of that name, for each.
        feeds: its inputs.
    """

    schedule: Schedule
    numbers: list[int]
    alphas: list[float]
    feeds: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image with its question.

    Attributes:
        size: height and width in pixels.
        grid: its crop grid.
        tiles: (tiles, 3, S, S), real tiles only.
        question: the prompt, its embeddings without padding; None where the graph does not look at it.
    """

    size: tuple[int, int]
    grid: Grid
    tiles: Array
    question: Question | None


def _schedules(plan: Plan) -> list[Schedule]:
    """Return the sizes at the export's `keep`, and at both ends of its range where K is chosen at run time."""
    fractions = dict.fromkeys([plan.schedule.keep, *(plan.schedule.keep_range or ())])
    return [replace(plan.schedule, keep=keep, keep_range=None) for keep in fractions]


def _check_image(
    seen: dict[str, Array], case: Case, plan: Plan, call: Call, row: int, oracle: Oracle, *, may_branch: bool
) -> ImageParity:
    """Compare what the graph returned for one image, batch axis removed, with transformers and the reference."""
    size, grid, schedule = case.size, case.grid, call.schedule
    saliency, relevance, alpha = seen["token_saliency"], seen.get("relevance"), 0.0
    decides = schedule.num_kept < schedule.num_slots or min(call.alphas) < 0
    if relevance is not None and may_branch and not decides and not relevance.any():
        oracle = replace(oracle, attention=None)  # what changes no output may be left out
    score_difference = _check_scores(seen, oracle, plan, size, grid)
    if relevance is not None:
        alpha = float(seen["effective_alpha"])
        auto = adaptive_alpha(schedule, size, grid, saliency, relevance)
        expected = auto if call.alphas[row] < 0 else call.alphas[row]
        _require(abs(alpha - expected), SCORES["fp32"], "effective_alpha", size)
    kept = keep_tokens(schedule, size, grid, saliency, seen["region_weights"], relevance, alpha)
    _check_choice(seen, kept, size)
    features, tolerance = seen["image_features"].astype(np.float32), FEATURES[plan.config.precision]
    count = len(kept.positions)
    difference = row_difference(features[:count], oracle.features[kept.positions])
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
    pairs["region_weights"] = (seen["region_weights"], expected_regions(oracle, plan, size, grid, sources))
    differences = {name: value_difference(*pair) for name, pair in pairs.items()}
    for name, difference in differences.items():
        _require(difference, SCORES[plan.config.precision], name, size)
    return max(differences.values())


def expected_regions(oracle: Oracle, plan: Plan, size: tuple[int, int], grid: Grid, sources: Array) -> Array:
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


def process(image: Array, checkpoint: Checkpoint, tiling: Tiling, **options: bool) -> Array:
    """Return the real tiles (tiles, 3, S, S) that transformers' image processor makes of an image (height, width, 3).

    Args:
        image: its pixels.
        checkpoint: for its image processor.
        tiling: for the grids of the export.
        **options: steps to leave out, such as `do_normalize=False`.
    """
    pinpoints = [[rows * tiling.tile_size, columns * tiling.tile_size] for rows, columns in tiling.grids]
    processed = checkpoint.processor.image_processor(
        image, image_grid_pinpoints=pinpoints, input_data_format="channels_last", return_tensors="np", **options
    )
    tiles: Array = np.asarray(processed["pixel_values"][0], dtype=np.float32)
    return tiles


def _case(number: int, size: tuple[int, int], plan: Plan, checkpoint: Checkpoint, model: Any) -> Case:
    """Return a test image with a random prompt: prefix, question, and a suffix after it."""
    question = None
    if plan.config.instruction != "none":
        length = max(1, plan.config.max_prompt * 3 // 4)  # the rest is padding
        length -= number % 3 if length > 8 else 0  # prompts of one batch differ in length
        ids = np.random.default_rng(number).integers(0, len(checkpoint.processor.tokenizer), length)
        mask = np.zeros(length, np.bool_)
        mask[length // 3 : max(length * 5 // 6, length // 3 + 1)] = True
        with torch.inference_mode():
            embeds = model.get_input_embeddings()(torch.from_numpy(ids)).numpy()
        question = Question(embeds=embeds, mask=mask, prefix_length=length // 4)
    return Case(
        size=size,
        grid=choose_grid(*size, plan.tiling.grids, plan.tiling.tile_size),
        tiles=process(gate_image(size, number), checkpoint, plan.tiling).astype(FLOAT[plan.config.precision]),
        question=question,
    )


def _feeds(io: GraphIO, cases: Sequence[Case], alphas: Sequence[float], schedule: Schedule) -> dict[str, Array]:
    """Return the graph's inputs for as many images as it takes."""
    feeds = {spec.name: np.zeros([int(n) for n in spec.shape], spec.dtype) for spec in io.inputs}
    if "num_kept" in feeds:
        feeds["num_kept"][:] = schedule.num_kept
    for row, (case, alpha) in enumerate(zip(cases, alphas, strict=True)):
        feeds["image_sizes"][row], feeds["tile_grid"][row] = case.size, case.grid
        feeds["pixel_values"][row, : len(case.tiles)] = case.tiles
        if case.question is not None:
            length = len(case.question.mask)
            feeds["alpha"][row] = alpha
            feeds["prompt_embeds"][row, :length] = case.question.embeds
            feeds["prompt_mask"][row, :length] = True
            feeds["question_mask"][row, :length] = case.question.mask
            feeds["prefix_length"][row] = case.question.prefix_length
    return feeds


def _run(path: Path, io: GraphIO, calls: Sequence[Call], step: Callable[[], None]) -> list[dict[str, Array]]:
    """Return the outputs and probes of each call of a written vision graph; `step` is told of each."""
    names, found = [spec.name for spec in (*io.outputs, *io.probes)], []
    with _probed_session(path, io) as session:
        for call in calls:
            step()
            found.append(_outputs(session, names, call))
    return found


def _check_as_written(path: Path, io: GraphIO, calls: Sequence[Call], probed: Sequence[dict[str, Array]]) -> None:
    """Run the graph without its probes: with fewer outputs the runtime may fuse otherwise, and must choose the same.

    Args:
        path: the vision graph as written.
        io: its contract.
        calls: what the graph with probes was fed.
        probed: what it returned.
    """
    names, session = [spec.name for spec in io.outputs], _session(path)
    for call, seen in zip(calls, probed, strict=True):
        size = tuple(call.feeds["image_sizes"][0].tolist())
        found = _outputs(session, names, call)
        for name in names:
            if np.issubdtype(found[name].dtype, np.floating):
                _require(row_difference(found[name], seen[name]), FEATURES["fp32"], name, size)
            elif not np.array_equal(found[name], seen[name]):
                raise ParityError(f"{name} changes when the probes are hidden", got=found[name], expected=seen[name])


def _outputs(session: Any, names: Sequence[str], call: Call) -> dict[str, Array]:
    try:
        return dict(zip(names, session.run(names, call.feeds), strict=True))
    finally:
        give_back()


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
    options.log_severity_level = 4  # what fails is raised
    ask_exact(options)
    options.enable_cpu_mem_arena = False  # an arena would keep the most that was needed at once
    # float16 weights are widened where they are used, and not all of them at the start
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return onnxruntime.InferenceSession(
        path,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["FuseFp16InitializerToFp32NodeTransformer"],
    )
