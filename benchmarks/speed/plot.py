"""A benchmark as a picture: what the time to the first token is made of, and tokens per second."""

from pathlib import Path

from matplotlib.figure import Figure

from ptp.benchmarks.speed.results import Benchmark, Case
from ptp.benchmarks.svg import save_svg

PARTS = {"preprocess": "#8d93b5", "vision": "#7fb2f0", "prune": "#d9480f", "prefill": "#0b57d0"}
"""Colours of the stages, in the order they run."""


def draw(benchmark: Benchmark, folder: Path) -> list[Path]:
    """Write `speed.svg` and `speed.png`; return their paths."""
    cases = benchmark.cases
    figure = Figure(figsize=(11, 1.4 + 0.38 * len(cases)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    rows = range(len(cases))
    starts = [0.0] * len(cases)
    for part, colour in PARTS.items():
        widths = [_parts(case)[part] / 1000 for case in cases]
        left.barh(rows, widths, left=starts, color=colour, label=part, height=0.7)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for row, total in zip(rows, starts, strict=True):
        left.annotate(f" {total:.3g}", (total, row), va="center", fontsize=8)
    rates = [case.generation.tokens_per_second if case.generation else 0 for case in cases]
    right.barh(rows, rates, color="#0a8f6c", height=0.7)
    left.set_yticks(rows, [f"{case.side}, keep {case.keep:g}" for case in cases], fontsize=8.5)
    left.invert_yaxis()
    left.set_xlabel("time to the first token, s (sum of medians)")
    right.set_xlabel("tokens/s")
    left.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    paths = [folder / "speed.svg", folder / "speed.png"]
    save_svg(figure, paths[0])
    figure.savefig(paths[1], dpi=160)
    return paths


def _parts(case: Case) -> dict[str, float]:
    prune = case.median_ms("prune") or 0.0
    return {
        "preprocess": case.median_ms("preprocess") or 0.0,
        "vision": (case.median_ms("vision_encoder") or 0.0) - prune,
        "prune": prune,
        "prefill": case.median_ms("llm_prefill") or 0.0,
    }
