"""Cost against the number of tiles, the fraction kept and the length of the context, beside what arithmetic predicts.

    python -m ptp.benchmarks.scaling [--out docs/figures] [--repeats 3] [--threads 2]

A small random LLaVA-NeXT (`MODEL`) on ONNX Runtime's CPU provider, FP32. Each point is the median of some runs after
one that warms up; points take turns, so that a slow moment of the machine hits all of them. Each curve has a line
beside it: its formula below, in floating-point operations, or in bytes where memory is the limit, times the one factor
that makes both equal at the curve's largest point. A curve that lies on its line costs what arithmetic says.

It writes `scaling.json`, `scaling-tiles.svg`, `scaling-keep.svg` and `scaling-context.svg`, and takes minutes. Run it
with nothing else running.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from matplotlib.figure import Figure

from ptp.benchmarks.random_checkpoint import Geometry, write_checkpoint
from ptp.benchmarks.random_feeds import random_feeds
from ptp.benchmarks.speed import machine
from ptp.benchmarks.svg import save_svg
from ptp.bundle.manifest import LanguageModel
from ptp.export.checkpoint import Checkpoint, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.decoder import DecoderGraph
from ptp.export.plan import Plan, make_plan
from ptp.export.specs import GraphIO, decoder_io
from ptp.export.to_onnx import save, trace
from ptp.export.vision import build_vision_graph
from ptp.runtime.backends.registry import usable_cpus

MODEL = Geometry(
    tile=112,
    vision_layers=8,
    vision_hidden=384,
    vision_heads=6,
    vision_intermediate=1536,
    hidden=512,
    layers=8,
    heads=8,
    kv_heads=8,
    intermediate=1376,
    grids=((1, 1), (1, 3), (2, 4), (4, 4), (4, 6), (5, 8)),
)
MAX_PROMPT = 64
KEEPS = tuple(Fraction(text) for text in ("0.05", "0.1", "0.25", "0.5", "0.75", "1"))
CONTEXTS = (128, 256, 512, 1024, 2048, 3072)
SIDE = MODEL.tile // MODEL.patch


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Measured milliseconds, and what they would be if the largest point's rate held everywhere.

    Attributes:
        name: what is measured.
        unit: of the formula: `flops` or `bytes`.
        x: number of crops, fraction kept, or tokens.
        measured_ms: median of each point.
        formula: the formula's value at each point.
        predicted_ms: formula × (measured / formula at the largest x).
    """

    name: str
    unit: str
    x: list[float]
    measured_ms: list[float]
    formula: list[float]
    predicted_ms: list[float]


def block_flops(rows: int, keys: int, *, width: int, kv_width: int, mlp: int, matrices: int) -> float:
    """Return the operations of one transformer block, a multiplication and an addition counting as two.

    All products of queries and keys count: the graphs compute those that the causal mask then drops, too.

    Args:
        rows: tokens that run through the block.
        keys: tokens that each of them looks at.
        width: of the hidden states.
        kv_width: of keys, and of values.
        mlp: width of the MLP.
        matrices: of the MLP: 2 for CLIP, 3 where it is gated.
    """
    weights = 2 * width**2 + 2 * width * kv_width + matrices * width * mlp
    return 2.0 * rows * weights + 4.0 * rows * keys * width


def prefill_flops(tokens: int, layers: int = MODEL.layers) -> float:
    """Return the operations of the language model over a prompt, its output layer for one token left out."""
    return layers * _language_block(tokens, tokens)


def decode_bytes(context: int) -> float:
    """Return the bytes that a token's step reads: every weight, and the cache's keys and values."""
    width = MODEL.hidden
    assert MODEL.intermediate is not None
    weights = MODEL.layers * (4 * width**2 + 3 * width * MODEL.intermediate) + MODEL.vocab * width
    return 4.0 * (weights + 2 * MODEL.layers * context * width)


def tile_flops() -> float:
    """Return the operations of the encoder over one tile, the projector left out.

    The encoder ends one block before its last, whose output LLaVA-NeXT does not use.
    """
    width, tokens = MODEL.vision_hidden, SIDE**2 + 1
    block = block_flops(tokens, tokens, width=width, kv_width=width, mlp=MODEL.vision_intermediate, matrices=2)
    patches = 2.0 * SIDE**2 * 3 * MODEL.patch**2 * width
    return patches + (MODEL.vision_layers - 1) * block


def vision_flops(tiles: int) -> float:
    """Return the operations of the vision graph: encoder, projector, and the pruner's block of the language model.

    Scores, sorting and gathering are left out.
    """
    projector = 2.0 * SIDE**2 * (MODEL.vision_hidden * MODEL.hidden + MODEL.hidden**2)
    sequence = tiles * SIDE**2 + MAX_PROMPT
    return tiles * (tile_flops() + projector) + _language_block(sequence, sequence)


def _language_block(rows: int, keys: int) -> float:
    assert MODEL.intermediate is not None
    return block_flops(rows, keys, width=MODEL.hidden, kv_width=MODEL.hidden, mlp=MODEL.intermediate, matrices=3)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        graphs = Graphs(Path(folder), options.threads)
        figures = {
            "tiles": measure_tiles(graphs, options.repeats),
            "keep": measure_keep(graphs, options.repeats),
            "context": measure_context(graphs, options.repeats),
        }
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "model": asdict(MODEL),
        "repeats": options.repeats,
        "threads": options.threads,
        "machine": machine.describe(),
        "libraries": machine.libraries(),
        "figures": {name: [asdict(curve) for curve in curves] for name, curves in figures.items()},
    }
    (options.out / "scaling.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    labels = {"tiles": "crops", "keep": "fraction of visual tokens kept", "context": "tokens"}
    for name, curves in figures.items():
        draw(curves, labels[name], options.out / f"scaling-{name}.svg")
        for curve in curves:
            print(
                f"{name}, {curve.name}: "
                + ", ".join(f"{x:g}: {y:.1f} ms" for x, y in zip(curve.x, curve.measured_ms, strict=True))
            )


class Graphs:
    """The model's graphs, traced when they are asked for.

    Args:
        folder: for checkpoint and graphs.
        threads: CPU threads.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self._checkpoint: Checkpoint = open_checkpoint(
            str(write_checkpoint(folder / "checkpoint", MODEL)), None, weights=True
        )
        load = self._checkpoint.adapter.load_class().from_pretrained
        self._model = load(self._checkpoint.folder, dtype=torch.float32).eval()

    @property
    def sizes(self) -> LanguageModel:
        """Sizes of the language model."""
        return self._checkpoint.language_model

    def vision(self, grid: tuple[int, int]) -> tuple[Any, Plan]:
        """Return the vision graph for one grid, K an input, and its plan."""
        config = ExportConfig(
            model=str(self._checkpoint.folder),
            out=self._folder / "none",
            keep=Fraction(1, 4),
            keep_range=(KEEPS[0], KEEPS[-1]),
            max_prompt=MAX_PROMPT,
            grid=grid,
        )
        plan = make_plan(config, self._checkpoint)
        module = build_vision_graph(plan, self._checkpoint, self._model)
        return self._session(module, plan.vision_io, "vision-{}x{}".format(*grid)), plan

    def decoder(self) -> Any:
        """Return the decoder."""
        return self._session(DecoderGraph(self._model), decoder_io(self.sizes, "fp32"), "decoder")

    def _session(self, module: Any, io: GraphIO, name: str) -> Any:
        print(f"tracing {name}", flush=True)
        path = self._folder / name / "graph.onnx"
        save(trace(module, io, opset=20), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure_tiles(graphs: Graphs, repeats: int) -> list[Curve]:
    """Return the vision graph's time over the number of crops, at keep 0.25."""
    points: dict[float, Callable[[], object]] = {}
    for rows, columns in MODEL.grids:
        session, plan = graphs.vision((rows, columns))
        points[rows * columns] = vision_run(session, plan, Fraction(1, 4))
    times = medians(points, repeats)
    return [curve("vision graph", "flops", times, {x: vision_flops(1 + int(x)) for x in points})]


def measure_keep(graphs: Graphs, repeats: int) -> list[Curve]:
    """Return the times of vision graph and prefill over the fraction kept, on the largest grid."""
    session, plan = graphs.vision(MODEL.grids[-1])
    decoder = graphs.decoder()
    lengths = {float(keep): MAX_PROMPT + plan.schedule.levels_at(keep).total for keep in KEEPS}
    vision = medians({float(keep): vision_run(session, plan, keep) for keep in KEEPS}, repeats)
    prefill = medians({x: step(decoder, graphs.sizes, n, 0) for x, n in lengths.items()}, repeats)
    tiles = plan.schedule.num_tiles
    return [
        curve("vision graph", "flops", vision, dict.fromkeys(vision, vision_flops(tiles))),
        curve("prefill", "flops", prefill, {x: prefill_flops(n) for x, n in lengths.items()}),
    ]


def measure_context(graphs: Graphs, repeats: int) -> list[Curve]:
    """Return the times of a prefill of so many tokens, and of one more token after them."""
    decoder = graphs.decoder()
    prefill = medians({n: step(decoder, graphs.sizes, n, 0) for n in CONTEXTS}, repeats)
    decode = medians({n: step(decoder, graphs.sizes, 1, n) for n in CONTEXTS}, repeats)
    return [
        curve("prefill", "flops", prefill, {n: prefill_flops(n) for n in CONTEXTS}),
        curve("one token more", "bytes", decode, {n: decode_bytes(n) for n in CONTEXTS}),
    ]


def vision_run(session: Any, plan: Plan, keep: Fraction) -> Callable[[], object]:
    """Return what runs a vision graph on a square question and an image of its grid's shape."""
    rows, columns = plan.tiling.grids[0]
    fixed = {
        "image_sizes": [[rows * MODEL.tile, columns * MODEL.tile]],
        "tile_grid": [[rows, columns]],
        "alpha": [0.5],
        "prefix_length": [5],
        "num_kept": [plan.schedule.levels_at(keep).total],
    }
    feeds = random_feeds(plan.vision_io.inputs, fixed)
    return lambda: session.run(None, feeds)


def step(decoder: Any, sizes: LanguageModel, tokens: int, past: int) -> Callable[[], object]:
    """Return what runs the decoder over new tokens after others."""
    fixed = {"attention_mask": np.ones((1, past + tokens), np.int64), "position_ids": past + np.arange(tokens)[None]}
    named = {"batch_size": 1, "sequence_length": tokens, "past_sequence_length": past}
    feeds = random_feeds(decoder_io(sizes, "fp32").inputs, fixed, named)
    return lambda: decoder.run(None, feeds)


def medians(points: Mapping[float, Callable[[], object]], repeats: int) -> dict[float, float]:
    """Return the median milliseconds of each point, the points in turns, after a round that warms up."""
    found: dict[float, list[float]] = {x: [] for x in points}
    for _ in range(1 + repeats):
        for x, run in points.items():
            start = time.perf_counter()
            run()
            found[x].append(1000 * (time.perf_counter() - start))
    return {x: statistics.median(values[1:]) for x, values in found.items()}


def curve(name: str, unit: str, measured: Mapping[float, float], formula: Mapping[float, float]) -> Curve:
    """Return a curve with its prediction, anchored at the largest x."""
    largest = max(measured)
    factor = measured[largest] / formula[largest]
    return Curve(
        name=name,
        unit=unit,
        x=list(measured),
        measured_ms=list(measured.values()),
        formula=[formula[x] for x in measured],
        predicted_ms=[factor * formula[x] for x in measured],
    )


def draw(curves: list[Curve], label: str, path: Path) -> None:
    """Write one figure: a panel for each curve, dots for what was measured, a line for what was predicted."""
    figure = Figure(figsize=(4.6 * len(curves), 3.4), layout="constrained")
    for axes, shown in zip(np.ravel(figure.subplots(1, len(curves))), curves, strict=True):
        axes.plot(shown.x, shown.predicted_ms, color="#7a7a7a", linestyle="--", label=f"predicted by {shown.unit}")
        axes.plot(shown.x, shown.measured_ms, color="#0b57d0", marker="o", label="measured")
        axes.set_title(shown.name, loc="left", fontsize=10)
        axes.set_xlabel(label)
        axes.set_ylabel("ms")
        axes.set_ylim(bottom=0)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    save_svg(figure, path)


if __name__ == "__main__":
    main()
