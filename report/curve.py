"""The accuracy curve as geometry; `curve.svg.jinja` draws it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log

from ptp.results import Family, Results, Row

TOP, BOTTOM, LEFT, RIGHT = 34.0, 48.0, 44.0, 116.0
"""Margins: the marker's label, the keeps, the accuracies, the methods' names."""

LINE_HEIGHT = 15.0
"""Distance between two names at the right end."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One method's line.

    Attributes:
        name: the method.
        family: what it may look at.
        points: in pixels, from the largest keep to the smallest.
        band: outline of the 95 % interval, for the method `ptp` only.
        label: height of the name at the right end, in pixels.
    """

    name: str
    family: Family
    points: tuple[Point, ...]
    band: tuple[Point, ...]
    label: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracy over keep, in pixels.

    Attributes:
        width: of the picture.
        height: of the picture.
        plot: left, top, right and bottom of the area inside the axes.
        series: the methods, the most important last so that they lie on top.
        keeps: places and texts on the horizontal axis, which is logarithmic; fewer tokens are further right.
        accuracies: places and percentages on the vertical axis.
        marker: place of the export's keep on the horizontal axis.
        measured: where the export's own method was measured at its keep, if it was.
    """

    width: float
    height: float
    plot: tuple[float, float, float, float]
    series: tuple[Series, ...]
    keeps: tuple[tuple[float, str], ...]
    accuracies: tuple[tuple[float, int], ...]
    marker: float
    measured: Point | None


def draw_curve(results: Results, *, keep: float, method: str, width: float) -> Curve:
    """Return the curve of an evaluation.

    Args:
        results: of the evaluation, with one row at least.
        keep: the export's; it is marked.
        method: which of the methods the export is.
        width: of the picture, in pixels; its height follows.
    """
    methods = methods_of(results)
    height = max(width * 0.5, 360.0, TOP + BOTTOM + LINE_HEIGHT * len(methods))
    left, top, right, bottom = LEFT, TOP, width - RIGHT, height - BOTTOM
    keeps = sorted({row.keep for row in results.rows} | {keep}, reverse=True)
    percents = _percents(value for row in results.rows for value in _span(row))

    def x(value: float) -> float:
        scale = log(keeps[0]) - log(keeps[-1])
        return round(left + (right - left) * ((log(keeps[0]) - log(value)) / scale if scale else 0.5), 1)

    def y(accuracy: float) -> float:
        low, high = percents[0], percents[-1]
        return round(bottom - (bottom - top) * (100 * accuracy - low) / (high - low), 1)

    points: dict[str, tuple[Point, ...]] = {}
    bands: dict[str, tuple[Point, ...]] = {}
    for name, rows in methods.items():
        points[name] = tuple((x(row.keep), y(row.accuracy)) for row in rows)
        if name == "ptp":
            upper = [(x(row.keep), y(row.high)) for row in rows]
            bands[name] = (*upper, *((x(row.keep), y(row.low)) for row in reversed(rows)))
        if rows[0].family == "unpruned":  # a level to compare with, at every keep
            points[name] = ((left, points[name][0][1]), (right, points[name][0][1]))
    labels = _spread({name: line[-1][1] for name, line in points.items()}, top, bottom)
    series = [
        Series(
            name=name,
            family=rows[0].family,
            points=points[name],
            band=bands.get(name, ()),
            label=labels[name],
        )
        for name, rows in methods.items()
    ]
    own = [row for row in methods.get(method, ()) if row.keep == keep]
    return Curve(
        width=width,
        height=height,
        plot=(left, top, right, bottom),
        series=tuple(reversed(series)),
        keeps=_readable([(x(value), f"{value:g}") for value in keeps]),
        accuracies=tuple((y(percent / 100), percent) for percent in percents),
        marker=x(keep),
        measured=(x(keep), y(own[0].accuracy)) if own else None,
    )


def methods_of(results: Results) -> dict[str, list[Row]]:
    """Return the rows of each method by falling keep: the whole image, `ptp`, its variants, then the others."""
    found: dict[str, list[Row]] = {}
    for row in sorted(results.rows, key=lambda row: -row.keep):
        found.setdefault(row.method, []).append(row)
    order = ("unpruned", "ptp", "question", "blind")
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1][0].family), item[0] != "ptp", item[0])))


def _span(row: Row) -> tuple[float, ...]:
    """Return what the picture shows of a row."""
    return (row.low, row.accuracy, row.high) if row.method == "ptp" else (row.accuracy,)


def _percents(accuracies: Iterable[float]) -> list[int]:
    """Return multiples of 10 (of 5 where that leaves less than three) that enclose the accuracies."""
    values = [round(100 * accuracy, 6) for accuracy in accuracies]
    for step in (10, 5):
        low, high = step * floor(min(values) / step), step * ceil(max(values) / step)
        if high - low >= 2 * step:
            break
    return list(range(low, max(high, low + step) + 1, step))


def _readable(ticks: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Return the ticks whose texts do not run into the one before."""
    shown: list[tuple[float, str]] = []
    for place, text in ticks:
        if not shown or place - shown[-1][0] >= 36:
            shown.append((place, text))
    return tuple(shown)


def _spread(wanted: dict[str, float], top: float, bottom: float) -> dict[str, float]:
    """Return heights for the names, in the order of the wanted ones and a line apart."""
    names = sorted(wanted, key=lambda name: wanted[name])
    placed: dict[str, float] = {}
    free = top
    for name in names:
        placed[name] = max(wanted[name], free)
        free = placed[name] + LINE_HEIGHT
    limit = bottom
    for name in reversed(names):  # what was pushed out at the bottom comes back, and pushes the others
        placed[name] = round(min(placed[name], limit), 1)
        limit = placed[name] - LINE_HEIGHT
    return placed
