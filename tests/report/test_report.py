"""`report.html`: what stands in it, and that nothing else does."""

import base64
import hashlib
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluations import EXAMPLES, HOSTILE, results
from PIL import Image

from ptp import Pipeline
from ptp.benchmarks.evaluation.variants import VARIANTS
from ptp.bundle import Bundle, open_bundle
from ptp.bundle.summary import budget_line
from ptp.cli import main
from ptp.report.evaluation import read_evaluation
from ptp.report.page import levels, own_method, write_report


class Page(HTMLParser):
    """The elements of a page with their attributes, the rows of its tables, and the text of it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag == "tr":
            self.cells.append("")

    def handle_data(self, data):
        self.texts.append(data)
        if self.cells:
            self.cells[-1] += data.strip() + " "

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def html(exported) -> str:
    return (exported.bundle / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def rewrite(exported, tmp_path):
    """Write the report of a copy of the bundle with another evaluation or manifest; return the page."""
    bundle = open_bundle(shutil.copytree(exported.bundle, tmp_path / "copy"))
    evaluation = read_evaluation(exported.checkpoint)

    def write(manifest=None, **changes) -> Page:
        written = Bundle(folder=bundle.folder, manifest=manifest or bundle.manifest)
        return Page(write_report(written, replace(evaluation, **changes)).read_text(encoding="utf-8"))

    return write


def test_the_report_is_a_file_of_the_bundle(exported, html):
    manifest = open_bundle(exported.bundle).manifest
    assert manifest.files["report.html"].sha256 == hashlib.sha256(html.encode()).hexdigest()
    assert list(manifest.files) == sorted(manifest.files)
    assert f"report: {exported.bundle / 'report.html'}" in exported.printed.replace("\n", "")


def test_the_facts_are_the_manifests(exported, html):
    manifest, page = open_bundle(exported.bundle).manifest, Page(html)
    assert budget_line(manifest.pruning, manifest.tiling) in page.text
    for level in levels(manifest):
        assert f"{level.name} {level.kept} of {level.tokens} " in page.text
    assert [round(100 * level.kept / level.tokens, 2) for level in levels(manifest)] == [
        float(match) for match in re.findall(r'<i style="width: ([0-9.]+)%">', html)
    ]
    assert f"largest relative difference {manifest.parity.max_feature_difference:.1e}" in page.text
    for name in manifest.files.keys() - {"report.html"}:
        assert f"{name} " in " ".join(page.cells)
    assert f"torch {manifest.tools['torch']}" in page.text
    assert "Measured on made-up/test: 120 questions about 40 images." in page.text
    assert "say how this model behaves with this software" in page.text


def test_the_table_has_the_accuracies(html):
    rows = [cells.split() for cells in Page(html).cells]
    assert ["ptp", "–", "75.0", "70.0–80.0", "70.0", "65.0–75.0", "65.0", "60.0–70.0"] in rows
    assert ["unpruned", "80.0", "75.0–85.0", "–", "–", "–"] in rows
    fastv = [
        "fastv",
        "–",
        "68.0",
        "63.0–73.0",
        "56.0",
        "51.0–61.0",
        "44.0",
        "39.0–49.0",
        "+10.0",
        "-2.0",
        "to",
        "+22.0",
    ]
    assert fastv in rows
    assert ["method", *"keep 1 keep 0.5 keep 0.25 keep 0.125".split(), *"ptp is better by".split()] in rows


def test_questions_answers_and_pictures_are_the_bundles(exported, html):
    page, pipeline = Page(html), Pipeline.load(exported.bundle)
    figures = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert len(figures) == len(EXAMPLES)
    for figure, (name, question) in zip(figures, EXAMPLES, strict=True):
        image = exported.checkpoint / "evaluation" / name
        visual = pipeline.encode(image, question)
        layout = visual.layout(pipeline.manifest.tiling)
        expected = pipeline.generate(image, question, max_new_tokens=64).text
        assert " ".join(expected.split()) in Page(figure).text
        kept = [layout.cell(position) for position in visual.positions.tolist()]
        crops = sum(cell.tile > 0 and not cell.is_newline for cell in kept)
        rows, columns = layout.kept_size
        assert f"{crops} of {rows * columns} tokens of the crops" in figure
        first, second = (attributes["src"] for attributes in Page(figure).of("img"))
        sizes = []
        for uri in (first, second):
            with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))) as picture:
                assert picture.format == "JPEG"
                sizes.append(picture.size)
        assert sizes[0][0] * rows == sizes[0][1] * columns
        assert sizes[1][0] == sizes[1][1]
    assert "One image, 2 questions: " in page.text


def test_the_page_loads_nothing_and_runs_nothing(html):
    page = Page(html)
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "a", "base", "foreignobject"}
    assert all(
        value.startswith("data:image/jpeg;base64,")
        for _, a in page.elements
        for value in [a.get("src", "data:image/jpeg;base64,")]
    )
    assert not any(
        name.startswith("on") or name in ("href", "srcset", "action") for _, a in page.elements for name in a
    )
    assert "url(" not in html
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html
    policies = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert all(a["alt"] for a in page.of("img"))
    assert len(page.of("svg")) == 2
    assert all(a["aria-label"] for a in page.of("svg"))


def test_hostile_text_stays_text(html, rewrite):
    assert HOSTILE in Page(html).text
    spoiled = results(task="</style><script>x</script>")
    worst = spoiled.rows[1].model_copy(update={"method": '"><img src=x onerror=y>', "family": "ptp"})
    page = rewrite(results=spoiled.model_copy(update={"rows": (*spoiled.rows, worst)}))
    assert not page.of("script")
    assert '"><img src=x onerror=y>' in page.text
    assert all(a["src"].startswith("data:") for a in page.of("img"))


def test_another_models_curve_is_left_out(rewrite):
    page = rewrite(is_of_these_weights=False, examples=())
    assert "was measured on other weights (SHA-256 " in page.text
    assert not page.of("svg")
    assert not page.of("img")
    assert "70.0" not in page.text
    assert "Kept tokens" not in page.text


def test_a_keep_that_was_not_measured_is_said(rewrite, exported):
    manifest = open_bundle(exported.bundle).manifest
    pruning = manifest.pruning.model_copy(update={"keep": 0.3})
    page = rewrite(manifest.model_copy(update={"pruning": pruning}), examples=())
    assert "ptp was not measured at keep 0.3, the keep of this export." in page.text
    assert "better by" not in page.text


def test_the_demo_is_not_llava_next_7b(rewrite, exported):
    manifest = open_bundle(exported.bundle).manifest
    assert "LLaVA-NeXT-7B" not in rewrite(examples=()).text
    demo = manifest.model_copy(update={"model": manifest.model.model_copy(update={"id": "demo"})})
    assert "They are not PTP’s on LLaVA-NeXT-7B" in rewrite(demo, examples=()).text


@pytest.mark.parametrize("variant", [x for x in VARIANTS.values() if x.ptp], ids=lambda variant: variant.name)
def test_the_method_is_named_as_in_evaluations(variant, exported):
    manifest = open_bundle(exported.bundle).manifest  # of an export with the default of every switch
    changes = {switch: value for switch, value in vars(variant.ptp).items() if value is not None}
    pruning = manifest.pruning.model_copy(update=changes)
    assert own_method(manifest.model_copy(update={"pruning": pruning})) == variant.name


def test_a_question_that_is_too_long_is_said_and_the_rest_is_asked(rewrite, exported):
    short, long = read_evaluation(exported.checkpoint).examples[1:3]
    page = rewrite(examples=(short, replace(long, question="Why? " * 30)))
    assert "Not asked: " in page.text
    assert len(page.of("img")) == 2
    assert "One image, 2 questions" not in page.text


def test_a_bad_evaluation_is_one_line_and_nothing_is_written(exported, tmp_path, capsys):
    checkpoint = Path(shutil.copytree(exported.checkpoint, tmp_path / "bad"))
    (checkpoint / "evaluation/results.json").write_text('{"rows": 1}')
    with pytest.raises(SystemExit) as end:
        main(["export", "--model", str(checkpoint), "--keep", "0.5", "--out", str(tmp_path / "out")])
    assert end.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "results.json does not follow its schema; got task: Field required" in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == [checkpoint]
