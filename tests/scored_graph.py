"""The vision graph with its scores as inputs, so that a test can choose them; in torch, and exported to ONNX."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from hypothesis import strategies as st

from ptp.alpha import AUTO_INPUT
from ptp.anyres import Grid, choose_grid
from ptp.bundle.manifest import TensorSpec
from ptp.export.adapters.base import TileEncoder
from ptp.export.lint import lint
from ptp.export.specs import GraphIO
from ptp.export.to_onnx import save, trace
from ptp.export.vision import VisionGraph
from ptp.ptp_graph.reference import adaptive_alpha, keep_tokens
from ptp.ptp_graph.schedule import Schedule

TILE, CLS = 56, 8
SCORES = {
    "random": lambda random, shape: random.random(shape),
    "ties": lambda random, shape: random.integers(0, 3, shape) / 2,
    "zeros": lambda random, shape: np.zeros(shape),
    "equal": lambda random, shape: np.full(shape, 0.3),
    "one-hot": lambda random, shape: (random.random(shape) > 0.98) * 1.0,
    "tiny": lambda random, shape: random.choice([0.0, 1e-45, 1e-38, 3e-38], shape),
    "fp16": lambda random, shape: random.random(shape).astype(np.float16),
    "huge": lambda random, shape: random.choice([-3e37, 0.0, 1.0, 3e37], shape),
}


class ScoresEncoder(TileEncoder):
    """Takes token saliency and CLS of each tile for its pixels; a token's feature is its number in the batch."""

    def __init__(self, tokens_per_tile: int) -> None:
        super().__init__()
        self.tokens = tokens_per_tile

    def encode(self, tiles):
        number = torch.arange(tiles.shape[0] * self.tokens, dtype=torch.float32).reshape(-1, self.tokens, 1)
        return number, tiles[:, : self.tokens], tiles[:, self.tokens :]

    def project(self, features):
        return features

    @property
    def newline(self):
        return torch.tensor([-1.0])


class ScoredGraph(VisionGraph):
    """Takes the relevance (B, T·N) for the prompt's embeddings."""

    def _relevance(self, features, slots, prompt_embeds, *masks):
        return prompt_embeds


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is fixed in a graph."""

    schedule: Schedule
    region: str = "cls_cosine"
    with_question: bool = True
    batch: int = 1

    @property
    def module(self) -> ScoredGraph:
        encoder = ScoresEncoder(self.schedule.tokens_per_tile)
        instruction = "similarity" if self.with_question else "none"
        return ScoredGraph(encoder, self.schedule, instruction, self.region, 0.1).eval()

    @property
    def io(self) -> GraphIO:
        schedule, batch = self.schedule, self.batch
        tiles, tokens = schedule.num_tiles, schedule.tokens_per_tile
        kept = "num_kept" if schedule.keep_range else schedule.num_kept

        def spec(name, dtype, *shape):
            return TensorSpec(name=name, dtype=dtype, shape=shape)

        inputs = [
            spec("pixel_values", "float32", batch, tiles, tokens + CLS),
            spec("image_sizes", "int64", batch, 2),
            spec("tile_grid", "int64", batch, 2),
        ]
        outputs = [
            spec("image_features", "float32", batch, kept, 1),
            spec("image_positions", "int64", batch, kept),
            spec("num_valid", "int64", batch),
            spec("tile_budgets", "int32", batch, tiles),
            spec("packed_length", "int64", batch),
        ]
        if self.with_question:
            inputs += [spec("alpha", "float32", batch), spec("prompt_embeds", "float32", batch, tiles * tokens)]
            outputs.append(spec("effective_alpha", "float32", batch))
        if schedule.keep_range:
            inputs.append(spec("num_kept", "int64", 1))
        outputs += [spec("token_saliency", "float32", batch, tiles, tokens)]
        outputs += [spec("region_weights", "float32", batch, tiles)]
        if self.with_question:
            outputs.append(spec("relevance", "float32", batch, tiles, tokens))
        return GraphIO(inputs=tuple(inputs), outputs=tuple(outputs))


Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def in_torch(setting: Setting) -> Run:
    module, names = setting.module, [spec.name for spec in setting.io.outputs]

    def run(feeds):
        with torch.inference_mode():
            outputs = module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        return dict(zip(names, (x.numpy() for x in outputs), strict=True))

    return run


def in_onnxruntime(setting: Setting, folder: Path, opset: int = 20) -> Run:
    """Export as every vision graph is: traced, linted, written."""
    model = trace(setting.module, setting.io, opset=opset)
    lint(model, "scored graph", static=True)
    save(model, folder / "graph.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "graph.onnx", options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in setting.io.outputs]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image of a call."""

    size: tuple[int, int]
    saliency: str
    relevance: str
    alpha: float
    seed: int
    with_nan: bool


SIZES = st.tuples(st.integers(1, 900), st.integers(1, 900)) | st.sampled_from(
    [(1, 3000), (3000, 1), (2, 900), (900, 3), (56, 112), (112, 56), (112, 112), (1, 1)]
)


@st.composite
def scenes(draw, setting: Setting) -> Scene:
    kinds = sorted(SCORES)
    # `thumbnail_attention` sums the saliency, in practice a softmax: never negative
    salient = [kind for kind in kinds if kind != "huge"] if setting.region == "thumbnail_attention" else kinds
    return Scene(
        size=draw(SIZES),
        saliency=draw(st.sampled_from(salient)),
        relevance=draw(st.sampled_from(kinds)),
        alpha=draw(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0, AUTO_INPUT])),
        seed=draw(st.integers(0, 2**31)),
        with_nan=draw(st.booleans()),
    )


@st.composite
def calls(draw, setting: Setting) -> tuple[list[Scene], Fraction]:
    """Return as many images as a call takes, and the fraction kept."""
    schedule = setting.schedule
    images = [draw(scenes(setting)) for _ in range(setting.batch)]
    if schedule.keep_range is None:
        return images, schedule.keep
    low, high = (int(bound * schedule.num_tokens) for bound in schedule.keep_range)
    return images, Fraction(draw(st.integers(low, high)), schedule.num_tokens)


@st.composite
def settings_(draw, grids: list[tuple[Grid, ...]]) -> Setting:
    side = draw(st.sampled_from([1, 2, 3, 4, 5]))
    chosen = draw(st.sampled_from(grids))
    num_tiles = 1 + max(rows * columns for rows, columns in chosen)
    total = num_tiles * side * side
    thumbnail = draw(st.sampled_from(["ratio", "keep_all", "as_region"]))
    least = side * side if thumbnail == "keep_all" else 1
    # any K from the least possible to everything, and fractions that do not come out even
    kept = draw(st.sampled_from([least, total]) | st.integers(least, total))
    keep = min(Fraction(1), Fraction(kept, total) + draw(st.sampled_from([Fraction(0), Fraction(1, 3 * total)])))
    return Setting(
        schedule=Schedule(
            keep=keep, side=side, grids=chosen, newline=draw(st.sampled_from(["keep", "drop"])), thumbnail=thumbnail
        ),
        region=draw(st.sampled_from(["cls_cosine", "thumbnail_attention", "uniform"])),
        with_question=draw(st.booleans()),
        batch=draw(st.sampled_from([1, 1, 1, 3])),
    )


def check(run: Run, setting: Setting, call: tuple[list[Scene], Fraction]) -> None:
    """Compare every image of one call with the reference."""
    images, keep = call
    schedule = replace(setting.schedule, keep=keep, keep_range=None)
    tiles, tokens = schedule.num_tiles, schedule.tokens_per_tile
    grids = [choose_grid(*scene.size, schedule.grids, TILE) for scene in images]
    pixels, relevances = [], []
    for scene, grid in zip(images, grids, strict=True):
        random = np.random.default_rng(scene.seed)
        saliency = SCORES[scene.saliency](random, (tiles, tokens)).astype(np.float32)
        relevance = SCORES[scene.relevance](random, (tiles, tokens)).astype(np.float32)
        cls = random.normal(size=(tiles, CLS)).astype(np.float32)
        if scene.with_nan:  # absent tiles may hold anything
            for scores in (saliency, relevance, cls):
                scores[1 + grid[0] * grid[1] :] = np.nan
        pixels.append(np.concatenate([saliency, cls], axis=1))
        relevances.append(relevance)
    feeds = {
        "pixel_values": np.stack(pixels),
        "image_sizes": np.array([scene.size for scene in images]),
        "tile_grid": np.array(grids),
    }
    if setting.with_question:
        feeds["alpha"] = np.array([scene.alpha for scene in images], np.float32)
        feeds["prompt_embeds"] = np.stack(relevances).reshape(len(images), -1)
    if setting.schedule.keep_range:
        feeds["num_kept"] = np.array([schedule.num_kept])
    outputs = run(feeds)
    assert outputs["image_positions"].shape == (len(images), schedule.num_kept)
    for row, (scene, grid) in enumerate(zip(images, grids, strict=True)):
        seen = {name: value[row] for name, value in outputs.items()}
        _check_image(seen, scene, grid, schedule, pixels[row][:, :tokens], relevances[row], row * schedule.num_tokens)


def _check_image(seen, scene, grid, schedule, saliency, relevance, first_number):
    alpha = 0.0
    if "effective_alpha" in seen:
        alpha = float(seen["effective_alpha"])
        auto = adaptive_alpha(schedule, scene.size, grid, saliency, relevance)
        assert abs(alpha - (auto if scene.alpha < 0 else scene.alpha)) < 1e-5
    expected = keep_tokens(
        schedule,
        scene.size,
        grid,
        saliency,
        seen["region_weights"],
        relevance if "effective_alpha" in seen else None,
        alpha,
    )
    count = int(seen["num_valid"])
    assert seen["tile_budgets"].tolist() == expected.tile_budgets
    assert seen["image_positions"][:count].tolist() == expected.positions
    assert int(seen["packed_length"]) == expected.packed_length
    rows = seen["image_features"][:, 0].tolist()
    assert rows[:count] == [float(s if s < 0 else first_number + s) for s in expected.sources]
    assert rows[count:] == [0.0] * (schedule.num_kept - count)
    positions = seen["image_positions"].tolist()
    assert positions == sorted(set(positions)), "ascending, none twice, padding included"
