"""The curve's points, worked out by hand."""

from itertools import pairwise

import pytest
from evaluations import results, row

from ptp.report.curve import BOTTOM, LEFT, LINE_HEIGHT, RIGHT, TOP, draw_curve, methods_of
from ptp.results import Results

WIDTH = 860.0
HEIGHT = 430.0
RIGHT_EDGE = WIDTH - RIGHT


def of(*rows) -> Results:
    return Results(task="t", model="m", weights="0" * 64, tools={}, rows=rows)


def height(percent: float, low: float, high: float) -> float:
    return pytest.approx(HEIGHT - BOTTOM - (percent - low) / (high - low) * (HEIGHT - BOTTOM - TOP), abs=0.06)


def test_points_band_and_marker():
    """Accuracies 30 to 80 %; keeps 1, 1/2, 1/4, 1/8 are equally far apart on the logarithmic axis."""
    curve = draw_curve(results(), keep=0.25, method="ptp", width=WIDTH)
    third = (RIGHT_EDGE - LEFT) / 3
    places = [pytest.approx(LEFT + i * third, abs=0.06) for i in range(4)]
    assert (curve.width, curve.height) == (WIDTH, HEIGHT)
    assert curve.keeps == ((places[0], "1"), (places[1], "0.5"), (places[2], "0.25"), (places[3], "0.125"))
    assert [percent for _, percent in curve.accuracies] == [30, 40, 50, 60, 70, 80]
    assert curve.accuracies[0] == (HEIGHT - BOTTOM, 30)
    assert curve.accuracies[-1] == (TOP, 80)
    series = {series.name: series for series in curve.series}
    # 0.8 − 0.05 · (1, 2, 3), and 5 points up and down
    assert series["ptp"].points == tuple(zip(places[1:], [height(p, 30, 80) for p in (75, 70, 65)], strict=True))
    upper = list(zip(places[1:], [height(p, 30, 80) for p in (80, 75, 70)], strict=True))
    lower = list(zip(places[1:], [height(p, 30, 80) for p in (70, 65, 60)], strict=True))
    assert series["ptp"].band == (*upper, *reversed(lower))
    assert all(not line.band for name, line in series.items() if name != "ptp")
    assert series["unpruned"].points == ((LEFT, TOP), (RIGHT_EDGE, TOP))
    assert curve.marker == places[2]
    assert curve.measured == (places[2], height(70, 30, 80))
    assert curve.series[-2].name == "ptp"  # drawn over the others


def test_an_export_that_was_not_measured_widens_the_axis():
    curve = draw_curve(results(), keep=0.0625, method="ptp", width=WIDTH)
    assert curve.measured is None
    assert curve.marker == curve.keeps[-1][0] == RIGHT_EDGE
    assert draw_curve(results(), keep=0.25, method="ptp-similarity", width=WIDTH).measured is None


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_one_point_can_be_drawn(accuracy):
    only = row("ptp", "ptp", 0.5, 0.5).model_copy(update={"accuracy": accuracy, "low": accuracy, "high": accuracy})
    curve = draw_curve(of(only), keep=0.5, method="ptp", width=WIDTH)
    assert curve.marker == pytest.approx((LEFT + RIGHT_EDGE) / 2)
    assert TOP <= curve.measured[1] <= HEIGHT - BOTTOM
    assert len(curve.accuracies) >= 2


def test_names_keep_a_line_apart_inside_the_picture_and_in_order():
    rows = [row(f"method {i:02}", "blind", keep, 0.5 + 0.001 * i) for i in range(40) for keep in (0.5, 0.25)]
    curve = draw_curve(of(*rows), keep=0.5, method="ptp", width=WIDTH)
    assert curve.height >= 40 * LINE_HEIGHT
    labels = sorted((series.label, series.name) for series in curve.series)
    assert all(b[0] - a[0] >= LINE_HEIGHT - 0.11 for a, b in pairwise(labels))
    assert labels[0][0] >= TOP - 0.5
    assert labels[-1][0] <= curve.height - BOTTOM
    assert [name for _, name in labels] == [f"method {i:02}" for i in reversed(range(40))]


def test_texts_of_close_keeps_do_not_run_into_each_other():
    rows = [row("ptp", "ptp", keep / 100, 0.5) for keep in range(1, 101)]
    places = [place for place, _ in draw_curve(of(*rows), keep=0.25, method="ptp", width=400).keeps]
    assert min(b - a for a, b in pairwise(places)) >= 36


def test_methods_are_in_reading_order():
    names = ["unpruned", "ptp", "ptp-none", "fastv", "fastervlm"]
    methods = methods_of(of(*reversed(results().rows)))
    assert list(methods) == names
    assert [row.keep for row in methods["ptp"]] == [0.5, 0.25, 0.125]
