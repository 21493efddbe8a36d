"""Accuracy over the fraction of visual tokens kept, as a picture."""

from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ptp.benchmarks.evaluation.tables import FAMILIES, by_method, keeps_of, title
from ptp.benchmarks.svg import save_svg
from ptp.results import Family, Results

COLOURS: dict[Family, tuple[str, ...]] = {
    "unpruned": ("#444444",),
    "ptp": ("#0b57d0", "#12a4d9", "#5b3fbf", "#0a8f6c", "#7fb2f0", "#9a7bdc"),
    "question": ("#d9480f", "#e8a200", "#b0275d"),
    "blind": ("#7a7a7a", "#a08060", "#5f7d5f", "#b07f95", "#8d93b5", "#9c9c50", "#5a9aa0"),
}
"""Hues by family: PTP cold, other methods that see the question warm, the rest pale."""

MARKERS = "osD^vP*X<>hp"


def draw(results: Results, folder: Path) -> list[Path]:
    """Write `accuracy.svg` and `accuracy.png`; return their paths.

    The methods' bands are their 95 % intervals; the dashed line is the whole image.

    Args:
        results: with one row at least.
        folder: where to write.
    """
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    axes = figure.subplots()
    colours = {family: cycle(values) for family, values in COLOURS.items()}
    for number, (method, by_keep) in enumerate(by_method(results).items()):
        rows = [by_keep[keep] for keep in sorted(by_keep)]
        family = rows[0].family
        colour = next(colours[family])
        if family == "unpruned":
            axes.axhline(100 * rows[0].accuracy, color=colour, linestyle="--", linewidth=1.5, label=method)
            axes.axhspan(100 * rows[0].low, 100 * rows[0].high, color=colour, alpha=0.08, linewidth=0)
            axes.plot([1], [100 * rows[0].accuracy], color=colour, marker=MARKERS[0])
            continue
        keeps = [row.keep for row in rows]
        axes.fill_between(
            keeps,
            [100 * row.low for row in rows],
            [100 * row.high for row in rows],
            color=colour,
            alpha=0.1,
            linewidth=0,
        )
        axes.plot(
            keeps,
            [100 * row.accuracy for row in rows],
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=2.6 if method == "ptp" else 1.4,
            linestyle=":" if family == "blind" else "-",
            label=f"{method} ({FAMILIES[family]})" if family != "ptp" else method,
            zorder=3 if method == "ptp" else 2,
        )
    _dress(axes, results)
    paths = [folder / "accuracy.svg", folder / "accuracy.png"]
    save_svg(figure, paths[0])
    figure.savefig(paths[1], dpi=160)
    return paths


def _dress(axes: Axes, results: Results) -> None:
    axes.set_xscale("log")  # budgets are halved, not lowered by a step
    axes.xaxis.set_major_locator(FixedLocator(keeps_of(results)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda keep, _: f"{keep:g}"))
    axes.set_xlabel("fraction of visual tokens kept")
    axes.set_ylabel("accuracy, %, with 95 % interval")
    axes.set_title(title(results), parse_math=False, loc="left", fontsize=11)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)
