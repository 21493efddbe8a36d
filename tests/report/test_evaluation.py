"""A checkpoint's evaluation is data from strangers."""

import json
import os
from pathlib import Path

import pytest
from evaluations import EXAMPLES, results, write_evaluation

from ptp.errors import CheckpointError, ImageError
from ptp.report.evaluation import MAX_EXAMPLES, read_evaluation
from ptp.results import weights_sha256


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    write_evaluation(folder)
    return folder


def test_an_evaluation_is_read_whole(checkpoint):
    evaluation = read_evaluation(checkpoint)
    assert evaluation is not None
    assert [(example.image.name, example.question) for example in evaluation.examples] == EXAMPLES
    assert all(example.image.is_file() for example in evaluation.examples)
    assert evaluation.is_of_these_weights
    (checkpoint / "model.safetensors").write_bytes(b"others")
    assert not read_evaluation(checkpoint).is_of_these_weights
    (checkpoint / "evaluation/examples.json").unlink()
    assert read_evaluation(checkpoint).examples == ()
    (checkpoint / "evaluation/results.json").unlink()
    assert read_evaluation(checkpoint) is None


def test_the_hash_of_weights_in_several_files_is_that_of_one(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/model.safetensors").write_bytes(b"first second")
    (tmp_path / "model-2.safetensors").write_bytes(b" second")
    (tmp_path / "model-1.safetensors").write_bytes(b"first")
    assert weights_sha256(tmp_path) == weights_sha256(tmp_path / "one")
    assert weights_sha256(tmp_path) == "92088ec140fc553e4b1ede202edccb65a807bbf8a38d765a3ad38013c0f13688"
    (tmp_path / "z.safetensors").mkdir()
    assert weights_sha256(tmp_path) == weights_sha256(tmp_path / "one")  # what is no file holds no weights


RESULTS = results().model_dump(mode="json")
BAD_RESULTS = {
    "file: Invalid JSON": b"{",
    "file: Invalid JSON: invalid unicode": b'"\xff"',
    "file: Invalid JSON: recursion limit": b"[" * 10_000,
    "rows: Tuple should have at least 1 item": RESULTS | {"rows": []},
    "rows.0.accuracy: Input should be less than or equal to 1": RESULTS
    | {"rows": [RESULTS["rows"][0] | {"accuracy": 2}]},
    "rows.0.low: Input should be a finite number": json.dumps(
        RESULTS | {"rows": [RESULTS["rows"][0] | {"low": float("nan")}]}
    ).encode(),
    "rows.0.keep: Input should be greater than": RESULTS | {"rows": [RESULTS["rows"][0] | {"keep": 0}]},
    "rows.0.method: String should have at most 40": RESULTS | {"rows": [RESULTS["rows"][0] | {"method": "x" * 41}]},
    "task: String should match pattern": RESULTS | {"task": "\x1b[2J"},
    "weights: String should match pattern": RESULTS | {"weights": "abc"},
    "got 1048577 bytes; expected at most 1048576": b" " * ((1 << 20) + 1),
}


@pytest.mark.parametrize("message", BAD_RESULTS)
def test_results_that_are_none_are_refused(message, checkpoint):
    bad = BAD_RESULTS[message]
    file = checkpoint / "evaluation/results.json"
    file.write_bytes(bad if isinstance(bad, bytes) else json.dumps(bad).encode())
    with pytest.raises(CheckpointError) as refused:
        read_evaluation(checkpoint)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 700


def example(image: str, question: str = "What?") -> dict[str, str]:
    return {"image": image, "question": question}


BAD_EXAMPLES = {
    "0.image: String should match pattern": [example("../config.json")],
    "0.image: String should match": [example("/etc/passwd")],
    "0.image: String should": [example(".hidden.png")],
    "1.image: String should match pattern": [example("wide.png"), example("C:wide.png")],
    "0.question: String should match pattern": [example("wide.png", "a\nb")],
    "0.question: String should have at least 1": [example("wide.png", "")],
    "0.answer: Extra inputs": [example("wide.png") | {"answer": "yes"}],
    "file: Tuple should have at most 16 items": [example("wide.png")] * (MAX_EXAMPLES + 1),
    "missing.png is missing; add it or remove evaluation/": [example("missing.png")],
    "folder is not a file": [example("folder")],
    "pipe is not a file": [example("pipe")],
    "link.png is a link out of the checkpoint": [example("link.png")],
    "large.png is too large": [example("large.png")],
}


@pytest.mark.parametrize("message", BAD_EXAMPLES)
def test_examples_that_lead_out_or_nowhere_are_refused(message, checkpoint):
    folder = checkpoint / "evaluation"
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    outside = (folder / "wide.png").rename(checkpoint.parent / "private.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "wide.png").write_bytes(outside.read_bytes())
    with (folder / "large.png").open("wb") as file:
        file.truncate((1 << 24) + 1)
    (folder / "examples.json").write_text(json.dumps(BAD_EXAMPLES[message]))
    with pytest.raises(CheckpointError) as refused:
        read_evaluation(checkpoint)
    assert message in str(refused.value)


def test_a_file_that_is_no_image_is_refused(checkpoint):
    (checkpoint / "evaluation/wide.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"wide\.png is not an image"):
        read_evaluation(checkpoint)


def test_a_checkpoint_of_links_is_read_as_the_hub_lays_it_out(checkpoint, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in checkpoint.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.rename(blobs / str(number)))
    evaluation = read_evaluation(snapshot)
    assert evaluation.is_of_these_weights
    assert len(evaluation.examples) == len(EXAMPLES)
