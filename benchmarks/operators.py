"""What ONNX Runtime spends a vision graph's time on, by kind of operator, and that of the pruner's own graph.

    python -m ptp.benchmarks.operators BUNDLE [--device cuda] [--repeats 3]

These are the graph that the runtime would run there, at the bundle's own keep, and the pruner's, which `ptp bench` cuts
out of it, on random tiles and features, whose values do not change the time. ONNX Runtime's profiler counts; a loop's
time is that of the operators in it. On a GPU every launch is waited for (`CUDA_LAUNCH_BLOCKING`): otherwise an
operator's time would be that of its launch. Run it with nothing else running.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from ptp.benchmarks.random_feeds import random_feeds
from ptp.benchmarks.speed.pruner_graph import write_pruner
from ptp.benchmarks.speed.ptp_side import PRUNER_GRAPHS, PrunerGraphs
from ptp.bundle import Bundle, open_bundle
from ptp.bundle.manifest import Graphs, GraphSpec
from ptp.errors import PtpError
from ptp.runtime.backends.onnxruntime import LOG_FATAL, PROVIDER_OPTIONS, available_provider, loader
from ptp.tolerances import ask_exact

LOOPS = {"Scan", "Loop", "If"}
SHOWN = 8
"""Kinds of operators that have a line of their own."""


@dataclass(kw_only=True)
class Kind:
    """Operators of one kind in one run.

    Attributes:
        count: how many ran; those of a loop's body count each time.
        milliseconds: what they took together.
    """

    count: float = 0
    milliseconds: float = 0


def main() -> None:
    """Print a table for each graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU; ONNX Runtime's choice without it")
    parser.add_argument("--repeats", type=int, default=3, help="runs, after one that warms up")
    options = parser.parse_args()
    if options.repeats < 1:
        raise SystemExit(f"error: nothing to measure; got --repeats {options.repeats}; expected 1 or more")
    if options.device == "cuda":
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    try:
        loader(options.device, threads=None)  # refuses a device that is not there, and finds CUDA's libraries
        bundle = open_bundle(options.bundle)
        for name, path, spec in _graphs(bundle, options.device):
            kinds, run = profile(path, _feeds(bundle, spec), options)
            print(table(name, kinds, run), flush=True)
    except PtpError as error:
        raise SystemExit(f"error: {error}") from error


def profile(path: Path, feeds: dict[str, Any], options: Any) -> tuple[dict[str, Kind], float]:
    """Return what a run spends on each kind of operator, and the run's milliseconds; means of some runs.

    Args:
        path: the graph.
        feeds: its inputs.
        options: `device`, `threads` and `repeats`.
    """
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = LOG_FATAL
    ask_exact(settings)
    settings.intra_op_num_threads = options.threads or 0
    settings.enable_profiling = True
    provider = available_provider(options.device)
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        providers = [(provider, PROVIDER_OPTIONS.get(provider, {}))]
        session = onnxruntime.InferenceSession(path, settings, providers=providers)
        for _ in range(options.repeats + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    _, *runs = (event for event in events if event["name"] == "model_run")  # the first one warms up
    kinds: dict[str, Kind] = {}
    for event in events:
        name = event.get("args", {}).get("op_name")
        if name in (None, *LOOPS) or not event["name"].endswith("_kernel_time") or event["ts"] < runs[0]["ts"]:
            continue
        kind = kinds.setdefault(name, Kind())
        kind.count += 1 / options.repeats
        kind.milliseconds += event["dur"] / 1000 / options.repeats
    return kinds, sum(run["dur"] for run in runs) / 1000 / options.repeats


def table(name: str, kinds: dict[str, Kind], run: float) -> str:
    """Return a table in Markdown: the kinds that take longest, the rest, all.

    Args:
        name: of the graph.
        kinds: by name.
        run: milliseconds.
    """
    ranked = sorted(kinds.items(), key=lambda item: -item[1].milliseconds)
    rows = [*ranked[:SHOWN], ("others", _sum(ranked[SHOWN:])), ("**all**", _sum(ranked))]
    lines = [f"{name}: {run:.1f} ms a run", "", "| operator | number | ms | of the run |", "|---|---|---|---|"]
    lines += [f"| {kind} | {x.count:.0f} | {x.milliseconds:.2f} | {x.milliseconds / run:.1%} |" for kind, x in rows]
    return "\n".join([*lines, ""])


def _sum(kinds: list[tuple[str, Kind]]) -> Kind:
    return Kind(count=sum(x.count for _, x in kinds), milliseconds=sum(x.milliseconds for _, x in kinds))


def _graphs(bundle: Bundle, device: str) -> Iterator[tuple[str, Path, GraphSpec]]:
    for_cpu = device == "cpu"
    vision = _chosen(bundle.manifest.graphs, for_cpu)
    yield "vision graph", bundle.path(vision.file), vision
    with tempfile.TemporaryDirectory() as folder:
        pruner = Path(folder) / "pruner"
        write_pruner(bundle, pruner)
        own = _chosen(PrunerGraphs.model_validate_json((pruner / PRUNER_GRAPHS).read_text(encoding="utf-8")), for_cpu)
        yield "pruner's own graph", pruner / own.file, own


def _chosen(graphs: Graphs | PrunerGraphs, for_cpu: bool) -> GraphSpec:
    return (graphs.vision_encoder_onnxruntime if for_cpu else None) or graphs.vision_encoder


def _feeds(bundle: Bundle, spec: GraphSpec) -> dict[str, Any]:
    """Return random inputs, and an image that fills the largest grid."""
    tiling, batch = bundle.manifest.tiling, bundle.manifest.batch
    grid = max(tiling.grids, key=lambda grid: grid[0] * grid[1])
    size = [cells * tiling.tile_size for cells in grid]
    kept = bundle.manifest.pruning.num_kept
    one = {"image_sizes": size, "tile_grid": grid, "alpha": 0.5, "prefix_length": 5}
    fixed = {name: [value] * batch for name, value in one.items()} | {"num_kept": [kept]}
    return random_feeds(spec.inputs, fixed, {"num_kept": kept})


if __name__ == "__main__":
    main()
