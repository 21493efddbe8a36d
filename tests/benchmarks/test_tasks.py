"""Questions of the demo and of files on disk."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ptp.benchmarks.evaluation.demo_task import DemoTask
from ptp.benchmarks.evaluation.jsonl_task import ONE_WORD, FileTask
from ptp.benchmarks.evaluation.task import Case
from ptp.demo.task import make_scene
from ptp.errors import ConfigError, ImageError


def test_the_demo_asks_what_the_scenes_ask():
    task = DemoTask("test", 3)
    scenes = [make_scene("test", i) for i in range(3)]
    expected = [
        Case(id=f"test/{i}/{n}", image=str(i), question=q.text, answers=(q.answer,), kind=q.kind)
        for i, scene in enumerate(scenes)
        for n, q in enumerate(scene.questions)
    ]
    assert list(task.cases) == expected
    assert (task.name, task.metric, task.prompt_suffix) == ("demo/test", "exact", "")
    for i in (2, 0, 0, 1):
        assert task.load_image(str(i)).tobytes() == scenes[i].image.tobytes()
    assert task.score(task.cases[0], f" {task.cases[0].answers[0].upper()}.") == 1
    assert task.score(task.cases[0], "nonsense") == 0
    assert task.summary([(task.cases[0], "cat")]) == {}


def test_the_demo_asks_no_more_than_it_is_told_about_a_scene():
    all_cases = DemoTask("validation", 2).cases
    assert list(DemoTask("validation", 2, questions=2).cases) == [
        case for case in all_cases if case.id[-2:] in ("/0", "/1")
    ]


def test_the_demos_fingerprint_tells_splits_and_seeds_apart_but_not_amounts(monkeypatch):
    prints = {DemoTask("test", 1).fingerprint, DemoTask("validation", 1).fingerprint}
    for seed in ("1", "2"):
        monkeypatch.setenv("PTP_EVAL_SEED", seed)
        prints.add(DemoTask("heldout", 1).fingerprint)
    assert len(prints) == 4
    assert DemoTask("test", 2, questions=1).fingerprint == DemoTask("test", 1).fingerprint
    monkeypatch.delenv("PTP_EVAL_SEED")
    with pytest.raises(ConfigError, match="PTP_EVAL_SEED"):
        DemoTask("heldout", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("a.png", "b.jpg", "images/c.jpg", "images/a.png")):
        Image.new("RGB", (8 + number, 8), "red").save(tmp_path / name)
    return tmp_path


def write(folder: Path, *rows: object, name: str = "questions.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_ones_own_file(folder):
    path = write(
        folder,
        {"image": "a.png", "question": "What?", "answer": "cat", "id": "first", "kind": "thing", "source": "mine"},
        "",
        {"image": "b.jpg", "question": "Who?", "answers": ["you", "me"]},
        {"image": "a.png", "question": "How many?", "answer": 3, "id": 7},
        {"image": str(folder / "images/c.jpg"), "question": "Where?", "answer": "here"},
    )
    task = FileTask(path)
    assert list(task.cases) == [  # those of an image together
        Case(id="first", image="a.png", question="What?", answers=("cat",), kind="thing"),
        Case(id="7", image="a.png", question="How many?", answers=("3",)),
        Case(id="3", image="b.jpg", question="Who?", answers=("you", "me")),
        Case(id="5", image=str(folder / "images/c.jpg"), question="Where?", answers=("here",)),
    ]
    assert (task.name, task.metric, task.prompt_suffix) == ("questions", "exact", "")
    assert [task.load_image(case.image).width for case in task.cases] == [8, 8, 9, 10]
    assert [task.score(task.cases[2], answer) for answer in ("Me.", "they")] == [1, 0]
    limited = FileTask(path, limit=2, prompt_suffix=" In a word.")
    assert [case.id for case in limited.cases] == ["first", "7", "3"]
    assert limited.prompt_suffix == " In a word."
    assert limited.fingerprint == task.fingerprint
    assert (
        FileTask(write(folder, {"image": "a.png", "question": "What?", "answer": "x"})).fingerprint != task.fingerprint
    )


def test_images_may_be_elsewhere(folder):
    path = write(folder, {"image": "a.png", "question": "What?", "answer": "cat"})
    assert FileTask(path, images=folder / "images").load_image("a.png").width == 11


def test_pope(folder):
    path = write(
        folder,
        {"question_id": 1, "image": "a.png", "text": "Is there a cat in the image?", "label": "yes"},
        {"question_id": 2, "image": "a.png", "text": "Is there a dog in the image?", "label": "no"},
    )
    task = FileTask(path)
    assert (task.metric, task.prompt_suffix) == ("yes-no", ONE_WORD)
    first, second = task.cases
    assert second == Case(id="2", image="a.png", question="Is there a dog in the image?", answers=("no",))
    assert task.score(second, "No, there is no dog.") == 1
    assert task.summary([(first, "Yes"), (second, "Yes.")]) == pytest.approx(
        {"precision": 0.5, "recall": 1, "f1": 2 / 3, "yes_ratio": 1}
    )


@pytest.mark.parametrize("indent", [None, 1])
def test_textvqa(folder, indent):
    people = ["nokia"] * 6 + ["Nokia phone"] * 4
    row = {"question": "what brand?", "image_id": "c", "question_id": 34602, "answers": people, "image_width": 8}
    path = folder / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"dataset_type": "val", "data": [row]}, indent=indent))
    task = FileTask(path, images=folder / "images")
    assert (task.name, task.metric, task.prompt_suffix) == ("TextVQA_0.5.1_val", "vqa", ONE_WORD)
    assert list(task.cases) == [Case(id="34602", image="c.jpg", question="what brand?", answers=tuple(people))]
    assert task.load_image("c.jpg").width == 10
    assert task.score(task.cases[0], "Nokia.") == 1
    assert task.summary([(task.cases[0], "Nokia")]) == {}


GOOD = {"image": "a.png", "question": "What?", "answer": "cat"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, '{"image": '], r":2 is not JSON; .*expected one object a line"),
        (["[1, 2]"], r":1 is not an object"),
        ([GOOD, {"image": "a.png", "answer": "cat"}], r":2: question cannot be used; expected Field required"),
        ([GOOD | {"question": ""}], r":1: question cannot be used; got ''"),
        ([GOOD | {"question": ["What?"]}], r":1: question cannot be used; got \['What\?'\]; expected .*string"),
        ([GOOD | {"kind": "a\nb"}], r":1: kind cannot be used"),
        ([GOOD | {"answers": ["cat"]}], r":1 does not say what is right; got both"),
        ([{"image": "a.png", "question": "What?"}], r":1 does not say what is right; got neither"),
        ([{"image": "a.png", "question": "What?", "answers": []}], r":1: answers cannot be used"),
        ([GOOD | {"id": "x"}, "", GOOD | {"id": "x"}], r":3 has the id of another question; got x; .*:1"),
        ([GOOD, GOOD | {"image": "none.png"}], r"1 of 2 images are missing; got no .*none\.png; .*--images"),
        (["", " "], "asks nothing"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(folder, rows, message):
    with pytest.raises(ConfigError, match=message):
        FileTask(write(folder, *rows))


def test_files_that_are_none(folder):
    with pytest.raises(ConfigError, match="cannot be read"):
        FileTask(folder / "missing.jsonl")
    (folder / "latin.jsonl").write_bytes(b'{"image": "\xe4.png"}')
    with pytest.raises(ConfigError, match="UTF-8"):
        FileTask(folder / "latin.jsonl")
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError):
        FileTask(write(folder, GOOD)).load_image("a.png")


@pytest.mark.parametrize(("metric", "expected"), [("vqa", "four people"), ("yes-no", "yes or no")])
def test_a_metric_that_cannot_grade_the_answers_is_refused(folder, metric, expected):
    with pytest.raises(ConfigError, match=rf"questions\.jsonl:1 cannot be graded by {metric}; got 'cat'; .*{expected}"):
        FileTask(write(folder, GOOD), metric=metric)


def test_textvqas_test_set_has_no_answers(folder):
    path = folder / "test.json"
    path.write_text(json.dumps({"data": [{"question": "what?", "image_id": "c", "question_id": 1}]}))
    with pytest.raises(ConfigError, match=r"test\.json: data\[0\]: answers cannot be used"):
        FileTask(path)
