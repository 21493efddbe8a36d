"""What tables and plots show is what the results say."""

import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from ptp.benchmarks.evaluation.plot import draw
from ptp.benchmarks.evaluation.tables import to_markdown
from ptp.results import Difference, Results, Row


def row(method: str, family: str, keep: float, accuracy: float, **changes) -> Row:
    values = {
        "num_kept": int(320 * keep) + 24,
        "low": accuracy - 0.04,
        "high": accuracy + 0.03,
        "cases": 500,
        "images": 60,
        "kinds": {"digit": accuracy - 0.1, "count": accuracy + 0.1},
    } | changes
    return Row(method=method, family=family, keep=keep, accuracy=accuracy, **values)


def difference(against: str, keep: float, mean: float, low: float, high: float) -> Difference:
    return Difference(method="ptp", against=against, keep=keep, mean=mean, low=low, high=high)


RESULTS = Results(
    task="demo/test",
    model="demo",
    weights="ab" * 32,
    tools={"ptp-export": "0.1.0", "torch": "2.13.0"},
    rows=(
        row("random", "blind", 0.25, 0.4),
        row("random", "blind", 0.5, 0.61),
        row("fastv", "question", 0.25, 0.7),
        row("ptp", "ptp", 0.25, 0.7),
        row("ptp", "ptp", 0.5, 0.75, num_kept=160),
        row("unpruned", "unpruned", 1, 0.8),
    ),
    differences=(
        difference("unpruned", 0.25, -0.1, -0.12, -0.08),
        difference("random", 0.25, 0.3, 0.25, 0.35),
        difference("fastv", 0.25, 0.0, -0.02, 0.02),
        difference("random", 0.5, 0.14, -0.01, 0.2),
    ),
)


def tables(markdown: str) -> list[list[list[str]]]:
    """Return the cells of each table."""
    found = re.findall(r"(?:^\|.*\|\n?)+", markdown, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]


def test_accuracy_by_method_and_budget():
    accuracy = tables(to_markdown(RESULTS))[0]
    assert accuracy == [
        ["method", "which is", "keep 1, K 344", "keep 0.5, K 160–184", "keep 0.25, K 104"],
        ["---"] * 5,
        ["unpruned", "nothing is pruned", "80.0 [76.0, 83.0]", "–", "–"],
        ["ptp", "PTP", "–", "**75.0** [71.0, 78.0]", "**70.0** [66.0, 73.0]"],
        ["fastv", "other, question seen", "–", "–", "**70.0** [66.0, 73.0]"],
        ["random", "other, question unseen", "–", "61.0 [57.0, 64.0]", "40.0 [36.0, 43.0]"],
    ]


def test_differences_and_kinds():
    _, differences, *kinds = tables(to_markdown(RESULTS))
    assert differences == [
        ["ptp against", "keep 0.5", "keep 0.25"],
        ["---"] * 3,
        ["unpruned", "–", "**−10.0** [−12.0, −8.0]"],
        ["random", "+14.0 [−1.0, +20.0]", "**+30.0** [+25.0, +35.0]"],
        ["fastv", "–", "+0.0 [−2.0, +2.0]"],
    ]
    assert kinds[0][2:] == [["unpruned", "70.0", "90.0"]]
    assert kinds[2][2:] == [["ptp", "60.0", "80.0"], ["fastv", "60.0", "80.0"], ["random", "30.0", "50.0"]]


def test_what_is_around_the_tables():
    markdown = to_markdown(RESULTS)
    assert markdown.startswith("# demo on demo/test: 500 questions about 60 images\n")
    assert "abababababab" in markdown
    assert "torch 2.13.0" in markdown
    assert "too narrow" not in markdown
    few = RESULTS.model_copy(update={"rows": tuple(r.model_copy(update={"images": 29}) for r in RESULTS.rows)})
    assert "fewer than 30 images the intervals are too narrow" in to_markdown(few)


def test_one_row_alone_has_nothing_to_compare_with():
    alone = Results(task="mine", model="m", weights="0" * 64, tools={}, rows=(row("ptp", "ptp", 0.5, 0.7, kinds={}),))
    markdown = to_markdown(alone)
    assert "70.0 [66.0, 73.0]" in markdown
    assert "##" not in markdown
    assert "**" not in markdown


def test_further_figures_have_a_table_each():
    summary = {"precision": 0.5, "yes_ratio": 0.25}
    rows = tuple(r.model_copy(update={"summary": summary}) for r in RESULTS.rows)
    markdown = to_markdown(RESULTS.model_copy(update={"rows": rows}))
    assert "## precision\n" in markdown
    section = markdown.split("## yes ratio\n")[1].split("##")[0]
    assert tables(section)[0][2] == ["unpruned", "nothing is pruned", "25.0", "–", "–"]


def test_a_stranger_cannot_break_the_table():
    rows = tuple(r.model_copy(update={"kinds": {"a|b": 0.5, "c": 0.5}}) for r in RESULTS.rows)
    for table in tables(to_markdown(RESULTS.model_copy(update={"rows": rows}))):
        assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize("task", ["demo/test", "price $5, $6 & <b>"])
def test_the_plot(tmp_path, task):
    results = RESULTS.model_copy(update={"task": task})
    svg, png = draw(results, tmp_path)
    assert (svg.name, png.name) == ("accuracy.svg", "accuracy.png")
    texts = {"".join(text.itertext()) for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"unpruned", "ptp", "fastv (other, question seen)", "random (other, question unseen)"} <= texts
    assert {"1", "0.5", "0.25"} <= texts
    assert f"demo on {task}: 500 questions about 60 images" in texts
    with Image.open(png) as image:
        assert image.width > 1000
    before = svg.read_bytes()
    draw(results, tmp_path)
    assert svg.read_bytes() == before
