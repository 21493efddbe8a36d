"""The loop over methods, budgets and images with an answerer that is no model, and the verb around it."""

import importlib.util
import json
import weakref
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from ptp.benchmarks.evaluation.jsonl_task import FileTask
from ptp.benchmarks.evaluation.metrics import METRICS
from ptp.benchmarks.evaluation.records import Records
from ptp.benchmarks.evaluation.run import Run, evaluate, plan, sum_up
from ptp.benchmarks.evaluation.statistics import Resampler
from ptp.benchmarks.evaluation.variants import VARIANTS, Variant
from ptp.cli import main
from ptp.errors import ConfigError

METHODS, KEEPS = ("ptp", "random"), (Fraction(1, 2), Fraction(1, 10))
RUNS = plan(VARIANTS, METHODS, (1, *KEEPS))
QUESTIONS = 5
SUFFIX = " One word."


def reply(method: str, keep: float, width: int, question: str) -> str:
    """Yes or no, as it happens, but always the same."""
    return "yes" if crc32(repr((method, keep, width, question)).encode()) % 3 else "no"


class FakeAnswerer:
    def __init__(self, source: "FakeSource", variant: Variant, keep: Fraction) -> None:
        self.source, self.variant, self.keep = source, variant, float(keep)

    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        if self.source.left == 0:
            raise KeyboardInterrupt
        self.source.left -= 1
        self.source.asked.update((self.variant.name, self.keep, image.width, question) for question in questions)
        return [reply(self.variant.name, self.keep, image.width, question) for question in questions]


class FakeSource:
    """Stands in for `Answerers`; gives up after so many images."""

    weights, tools = "0" * 64, {"fake": "1"}

    def __init__(self, images: int = -1) -> None:
        self.left = images
        self.asked = Counter()
        self.opened: list[tuple[str, Fraction]] = []
        self.last = lambda: None

    def open(self, variant: Variant, keep: Fraction) -> FakeAnswerer:
        assert self.last() is None, "the answerer before still holds its model"
        self.opened.append((variant.name, keep))
        answerer = FakeAnswerer(self, variant, keep)
        self.last = weakref.ref(answerer)
        return answerer

    def num_kept(self, variant: Variant, keep: Fraction) -> int:
        if keep < Fraction(1, 100):
            raise ConfigError("keep keeps no token at all")
        return int(keep * 100) + (10 if variant.name == "random" else 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = []
    for image in range(4):
        Image.new("RGB", (10 + image, 10)).save(folder / f"{image}.png")
        for number in range(QUESTIONS):
            kind, answer = ("odd" if number % 2 else "even"), ("yes" if (image + number) % 2 else "no")
            rows.append({"image": f"{image}.png", "question": "?" * (number + 1), "answer": answer, "kind": kind})
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "mine.jsonl"


@pytest.fixture
def task(questions: Path) -> FileTask:
    return FileTask(questions, metric="yes-no", prompt_suffix=SUFFIX)


def test_plan():
    whole, ptp, random = VARIANTS["unpruned"], VARIANTS["ptp"], VARIANTS["random"]
    half, tenth = KEEPS
    expected = [(whole, 1), (ptp, half), (ptp, tenth), (random, half), (random, tenth)]
    assert [(run.variant, run.keep) for run in RUNS] == expected
    assert plan(VARIANTS, ("unpruned", *METHODS, "ptp"), (tenth, half, half)) == RUNS
    assert plan(VARIANTS, ("ptp",), (half,)) == (Run(variant=ptp, keep=half),)
    assert plan(VARIANTS, ("ptp",), (1,)) == RUNS[:1]
    for methods, keeps, message in (
        (("ptp", "ptq", "x"), KEEPS, "no such method; got ptq, x; expected unpruned, ptp"),
        (METHODS, (half, Fraction(3, 2)), "got 1.5; expected 0 < keep"),
        (METHODS, (Fraction(0),), "expected 0 < keep"),
        ((), KEEPS, "nothing to evaluate"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(VARIANTS, methods, keeps)


def test_everything_is_asked_once_with_the_suffix_and_progress_is_told(task, tmp_path):
    source, told = FakeSource(), []
    with Records(tmp_path / "out", {}) as records:
        evaluate(task, RUNS, source, records, lambda *what: told.append(what))
    expected = {
        (run.variant.name, float(run.keep), 10 + image, "?" * (number + 1) + SUFFIX)
        for run in RUNS
        for image in range(4)
        for number in range(QUESTIONS)
    }
    assert set(source.asked) == expected
    assert set(source.asked.values()) == {1}
    total = len(expected)
    assert [done for _, done, _ in told if done % QUESTIONS] == []
    assert told[0] == ("unpruned", 0, total)
    assert told[-1] == ("random at 0.1", total, total)


@pytest.mark.parametrize("images", [0, 1, 4, 7, 19])
def test_an_evaluation_that_was_stopped_goes_on(task, tmp_path, images):
    first, second = FakeSource(images), FakeSource()
    with pytest.raises(KeyboardInterrupt), Records(tmp_path / "out", {}) as records:
        evaluate(task, RUNS, first, records)
    with Records(tmp_path / "out", {}) as records:
        evaluate(task, RUNS, second, records)
        results = sum_up(task, RUNS, second, records, model="m", weights="0" * 64, tools={})
    assert sum(first.asked.values()) == images * QUESTIONS
    assert not first.asked & second.asked
    assert len(first.asked | second.asked) == len(RUNS) * len(task.cases)
    assert len(second.opened) == len(RUNS) - images // 4
    with Records(tmp_path / "whole", {}) as records:
        evaluate(task, RUNS, second, records)
        assert results == sum_up(task, RUNS, second, records, model="m", weights="0" * 64, tools={})


def test_a_budget_that_cannot_be_had_is_refused_before_anything_is_asked(task, tmp_path):
    source = FakeSource()
    with Records(tmp_path / "out", {}) as records, pytest.raises(ConfigError, match="no token"):
        evaluate(task, [*RUNS, Run(variant=VARIANTS["ptp"], keep=Fraction(1, 1000))], source, records)
    assert not source.asked


def test_results_are_those_of_the_answers(task, tmp_path):
    source = FakeSource()
    with Records(tmp_path / "out", {}) as records:
        evaluate(task, RUNS, source, records)
        results = sum_up(task, RUNS, source, records, model="m", weights="0" * 64, tools={"a": "1"})
    scores = {}
    for row, run in zip(results.rows, RUNS, strict=True):
        name, keep = run.variant.name, float(run.keep)
        says = [reply(name, keep, 10 + i, "?" * (n + 1) + SUFFIX) for i in range(4) for n in range(QUESTIONS)]
        right = [
            says[i * QUESTIONS + n] == ("yes" if (i + n) % 2 else "no") for i in range(4) for n in range(QUESTIONS)
        ]
        scores[name, keep] = np.array(right, float)
        assert (row.method, row.keep, row.family) == (name, keep, run.variant.family)
        assert (row.num_kept, row.cases, row.images) == (source.num_kept(run.variant, run.keep), 20, 4)
        assert row.accuracy == pytest.approx(np.mean(right))
        assert row.low <= row.accuracy <= row.high
        odd = [right[i * QUESTIONS + n] for i in range(4) for n in range(QUESTIONS) if n % 2]
        assert row.kinds["odd"] == pytest.approx(np.mean(odd))
        assert set(row.kinds) == {"odd", "even"}
        assert row.summary["yes_ratio"] == pytest.approx(says.count("yes") / 20)
    assert (results.task, results.model, results.tools) == ("mine (yes-no)", "m", {"a": "1"})
    resampler = Resampler([case.image for case in task.cases])
    pairs = [(0.5, "unpruned", 1), (0.5, "random", 0.5), (0.1, "unpruned", 1), (0.1, "random", 0.1)]
    assert [(entry.keep, entry.against) for entry in results.differences] == [pair[:2] for pair in pairs]
    for entry, (keep, against, other_keep) in zip(results.differences, pairs, strict=True):
        ours, theirs = scores["ptp", keep], scores[against, other_keep]
        assert entry.method == "ptp"
        assert entry.mean == pytest.approx(ours.mean() - theirs.mean())
        interval = resampler.difference(ours, theirs)
        assert (entry.low, entry.high) == (interval.low, interval.high)


@pytest.fixture
def fake_models(monkeypatch):
    source = FakeSource()
    monkeypatch.setattr("ptp.benchmarks.evaluation.answerers.Answerers", lambda *_, **__: source)
    return source


def ptp_eval(*arguments: object) -> int:
    try:
        main(["eval", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_verb_writes_everything_and_prints_the_table(fake_models, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    options = ("--task", questions, "--keep", "1,0.5,1/10", "--methods", "ptp,random", "--out", out)
    assert ptp_eval(*options, "--metric", "yes-no", "--limit", 3) == 0
    assert {path.name for path in out.iterdir()} == {
        *("accuracy.png", "accuracy.svg", "records.jsonl", "results.json", "table.md")
    }
    printed, errors = capsys.readouterr()
    assert "demo on mine (yes-no): 15 questions about 3 images" in printed
    for name in ("unpruned", "ptp", "random", "table.md", "accuracy.svg", "records.jsonl"):
        assert name in printed
    assert errors == ""
    asked = sum(fake_models.asked.values())
    assert ptp_eval(*options, "--metric", "yes-no", "--json") == 0
    assert sum(fake_models.asked.values()) == asked + len(RUNS) * QUESTIONS  # the fourth image
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "results.json").read_text())
    assert printed["rows"][0]["cases"] == 20
    assert printed["weights"] == FakeSource.weights
    assert ptp_eval(*options) == 1
    assert "another evaluation; got metric 'yes-no'; expected metric 'exact'" in capsys.readouterr().err
    assert ptp_eval(*options, "--force") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "ptp,nonsense"), "no such method; got nonsense"),
        (("--keep", "0.5,half"), "--keep is not a number; got 'half'"),
        (("--keep", "0"), "expected 0 < keep"),
        (("--limit", "0"), "--limit is a number of images"),
        (("--metric", "exact"), "the demo task has its own images and grading; got --metric"),
        (("--images", "."), "got --images"),
        (("--task", "x.jsonl", "--split", "test"), "--split is of the demo task"),
        (("--task", "missing.jsonl"), "missing.jsonl cannot be read"),
    ],
)
def test_the_verb_refuses_in_one_line(fake_models, tmp_path, options, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ptp_eval(*options) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.count("\n") == 1
    assert message in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "extra"), [({"matplotlib"}, "eval"), ({"torch"}, "export"), ({"torch", "matplotlib"}, "export,eval")]
)
def test_the_verb_says_what_it_needs(missing, extra, capsys, monkeypatch):
    monkeypatch.setattr(
        "ptp.benchmarks.evaluation.cli.find_spec",
        lambda name: None if name in missing else importlib.util.find_spec(name),
    )
    assert ptp_eval() == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f'pip install "ptp-export[{extra}]"' in errors


def test_the_verbs_metrics_are_those_there_are(capsys):
    assert ptp_eval("--metric", "nonsense") == 2
    errors = capsys.readouterr().err
    assert all(name in errors for name in METRICS)
