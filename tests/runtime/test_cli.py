"""`ptp run` and `ptp inspect` on the demo bundle."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptp import Pipeline
from ptp.bundle.summary import budget_line
from ptp.cli import main
from ptp.runtime.cli import hash_progress, pair_up

QUESTION = "What is this?"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)).save(path)
    return path


def ptp(*arguments: object) -> int:
    """Run the program; return its exit status."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_run_prints_the_answer(demo_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ptp("run", demo_bundle, "--image", photo, "--prompt", QUESTION, "--max-new-tokens", 6) == 0
    expected = Pipeline.load(demo_bundle).generate(photo, QUESTION, max_new_tokens=6)
    assert capsys.readouterr().out == expected.text + "\n"


def test_run_passes_every_option_on(
    demo_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max-new-tokens": 9, "temperature": 1.3, "top-p": 0.9, "seed": 5, "alpha": 0.9, "stop": "zzz"}
    flags = [x for name, value in options.items() for x in (f"--{name}", value)]
    picture = tmp_path / "shown.png"
    extra = ("--threads", 1, "--json", "--show", picture)
    assert ptp("run", demo_bundle, "--image", photo, "--prompt", QUESTION, *flags, *extra) == 0
    result = json.loads(capsys.readouterr().out)
    pipeline = Pipeline.load(demo_bundle)
    expected = pipeline.generate(
        photo, QUESTION, max_new_tokens=9, temperature=1.3, top_p=0.9, seed=5, alpha=0.9, stop=("zzz",)
    )
    assert result["token_ids"] == list(expected.token_ids)
    assert (result["text"], result["stop_reason"]) == (expected.text, expected.stop_reason)
    assert result["num_visual_tokens"] == expected.num_visual_tokens == len(result["visual_tokens"]["positions"])
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_backends_and_their_options_are_passed_on(
    demo_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--backend", "openvino", "--precision", "fp32", "--threads", 1)
    asked = ("--image", photo, "--prompt", QUESTION)
    outputs = []
    for extra in ((), chosen):
        assert ptp("run", demo_bundle, *asked, "--max-new-tokens", 6, *extra) == 0
        outputs.append(capsys.readouterr().out)
        assert ptp("inspect", demo_bundle, *asked, "--out", tmp_path / "kept.png", "--json", *extra) == 0
        outputs.append(json.loads(capsys.readouterr().out)["visual_tokens"]["positions"])
    assert outputs[:2] == outputs[2:]


@pytest.mark.parametrize("verb", ["run", "inspect"])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--backend", "openvino", "--provider", "cuda"), "provider is an option of onnxruntime; got backend openvino"),
        (("--backend", "tensorflow"), "no such backend"),
        (("--threads", 0), "threads is out of range"),
        (("--backend", "tensorrt-rtx"), "the backend tensorrt-rtx needs an NVIDIA GPU; got no CUDA device"),
        (("--backend", "tensorrt", "--target", "orin-nano"), "the backend tensorrt needs an NVIDIA GPU"),
    ],
)
def test_backends_are_refused_before_the_bundle_is_read(
    verb: str,
    options: tuple[object, ...],
    problem: str,
    copied_bundle: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ptp.runtime.backends.tensorrt.find_device", lambda: None)
    with (copied_bundle / "tokenizer.json").open("ab") as file:
        file.write(b" ")  # would be found when the files are verified
    extra = ("--out", photo.parent / "kept.png") if verb == "inspect" else ()
    assert ptp(verb, copied_bundle, "--image", photo, "--prompt", QUESTION, *extra, *options) == 1
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert problem in printed.err


def test_run_answers_several_questions(
    demo_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (50, 50), "red").save(other)
    arguments = ("run", demo_bundle, "--image", photo, "--image", other, "--prompt", QUESTION, "--max-new-tokens", 5)
    assert ptp(*arguments) == 0
    pipeline = Pipeline.load(demo_bundle)
    texts = [pipeline.generate(path, QUESTION, max_new_tokens=5).text for path in (photo, other)]
    assert capsys.readouterr().out == f"{photo}: {QUESTION}\n{texts[0]}\n{other}: {QUESTION}\n{texts[1]}\n"
    assert ptp(*arguments, "--json", "--alpha", "auto") == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["image"], second["image"], first["prompt"]) == (str(photo), str(other), QUESTION)
    assert first["visual_tokens"]["alpha"] == pytest.approx(pipeline.encode(photo, QUESTION, alpha="auto").alpha)


def test_questions_and_images_must_pair_up(
    demo_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ptp("run", demo_bundle, *("--image", photo) * 3, *("--prompt", QUESTION) * 2) == 1
    assert "got 3 images and 2 questions; expected one of either, or as many of both" in capsys.readouterr().err
    shown = ("--show", tmp_path / "shown.png")
    assert ptp("run", demo_bundle, *("--image", photo) * 2, "--prompt", QUESTION, *shown) == 1
    assert "--show draws one image; got 2 questions" in capsys.readouterr().err
    assert pair_up([photo], ["a", "b"]) == [(photo, "a"), (photo, "b")]


def test_keep_is_refused_where_it_is_fixed(
    demo_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for verb, extra in (("run", ()), ("inspect", ("--out", tmp_path / "kept.png"))):
        assert ptp(verb, demo_bundle, "--image", photo, "--prompt", QUESTION, "--keep", "0.5", *extra) == 1
        assert "keep is fixed in this bundle; got 0.5; expected 0.25" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "inspect"])
def test_a_system_prompt_is_passed_on(
    verb: str, demo_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ptp(verb, demo_bundle, "--image", photo, "--prompt", QUESTION, "--system", "Be brief.") == 1
    assert "this model's chat template takes no system prompt; leave it out" in capsys.readouterr().err


def test_run_stops_at_a_stop_text(demo_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = list(Pipeline.load(demo_bundle).stream(photo, QUESTION, max_new_tokens=12))
    text = "".join(pieces)
    stop = text[len(text) // 2 :][:2]
    arguments = ("run", demo_bundle, "--image", photo, "--prompt", QUESTION, "--max-new-tokens", 12, "--stop", stop)
    assert ptp(*arguments) == 0
    assert capsys.readouterr().out == text[: text.index(stop)] + "\n"


def test_inspect_shows_the_bundle(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ptp("inspect", demo_bundle) == 0
    out = capsys.readouterr().out
    manifest = Pipeline.load(demo_bundle).manifest
    assert budget_line(manifest.pruning, manifest.tiling) in out.splitlines()
    for graph in manifest.graphs.all:
        assert graph.file in out
    for name, entry in manifest.files.items():
        assert name in out
        assert entry.sha256[:20] in out


def test_inspect_shows_an_image(
    demo_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "kept.png"
    picture.write_text("an older file")
    arguments = ("inspect", demo_bundle, "--image", photo, "--prompt", QUESTION, "--out", picture)
    assert ptp(*arguments) == 0
    visual = Pipeline.load(demo_bundle).encode(photo, QUESTION)
    out = capsys.readouterr().out
    assert f"{visual.count} of {visual.packed_length} tokens kept" in out
    assert "crop 1,2" in out
    assert f"picture: {picture}" in out.splitlines()
    with Image.open(picture) as image:
        image.verify()
    assert ptp(*arguments, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema_version"] == 2
    shown = result["visual_tokens"]
    assert shown["positions"] == visual.positions.tolist()
    assert sum(shown["tile_budgets"]) <= sum(shown["tile_tokens"])
    assert all(n <= most for n, most in zip(shown["tile_budgets"], shown["tile_tokens"], strict=True))


def test_inspect_needs_no_decoder(copied_bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptp.runtime.backends import onnxruntime

    loaded = []
    real = onnxruntime.OnnxRuntimeGraph.__init__
    monkeypatch.setattr(
        onnxruntime.OnnxRuntimeGraph,
        "__init__",
        lambda self, path, *args, **options: (loaded.append(path.name), real(self, path, *args, **options))[1],
    )
    out = copied_bundle.parent / "kept.png"
    assert ptp("inspect", copied_bundle, "--image", photo, "--prompt", QUESTION, "--out", out) == 0
    assert loaded == ["embed_tokens.onnx", "vision_encoder.onnx"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--image", "PHOTO"), "this bundle chooses tokens by the question; give one with --prompt"),
        (("--image", "PHOTO", "--prompt", "a", "--out", "kept.jpg"), "expected a name that ends in .png"),
        (("--image", "PHOTO", "--prompt", "a", "--out", "no/such/folder/kept.png"), "a folder that exists"),
        (("--image", "none.png", "--prompt", "a", "--out", "OUT"), "none.png is missing"),
        (("--image", "PHOTO", "--prompt", "a", "--out", "OUT", "--alpha", "2"), "expected 0 to 1"),
        (("--image", "PHOTO", "--prompt", "a", "--out", "OUT", "--provider", "cuda"), "cuda is not available"),
        (("--prompt", "a"), "give an image with --image"),
        (("--backend", "openvino"), "give an image with --image"),
        (("--threads", "2"), "give an image with --image"),
    ],
)
def test_inspect_refuses(
    arguments: tuple[str, ...],
    problem: str,
    demo_bundle: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"PHOTO": str(photo), "OUT": str(photo.parent / "kept.png")}
    assert ptp("inspect", demo_bundle, *(places.get(x, x) for x in arguments)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert problem in printed.err
    assert len(printed.err.splitlines()) == 1


def test_alpha_is_refused_where_the_question_is_not_looked_at(
    full_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("inspect", full_bundle, "--image", photo, "--out", photo.parent / "kept.png")
    assert ptp(*arguments, "--alpha", 0.5) == 1
    assert "this bundle does not look at" in capsys.readouterr().err
    assert ptp(*arguments) == 0


def test_altered_bundles_are_refused(copied_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (copied_bundle / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    assert ptp("run", copied_bundle, "--image", photo, "--prompt", QUESTION) == 1
    assert "tokenizer.json was altered" in capsys.readouterr().err
    shutil.rmtree(copied_bundle)
    assert ptp("inspect", copied_bundle) == 1
    assert "is not a bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("terminal", "show_after", "shown"), [(True, 0.0, True), (True, 3600.0, False), (False, 0.0, False)]
)
def test_progress_appears_on_terminals_when_it_takes_long(
    terminal: bool,
    show_after: float,
    shown: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    with hash_progress(show_after) as say:
        say("model.onnx", 1, 2)
    printed = capsys.readouterr().err
    assert ("verifying model.onnx" in printed) == shown
    assert shown or printed == ""


def test_answers_hold_no_control_characters_and_keep_their_joiners(
    demo_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a\tb\n\x1b[2Jc\x9b3md\r\x07e 👩\u200d👧\u3000你\u00a0क्\u200dष"
    monkeypatch.setattr(Pipeline, "stream_batch", lambda *args, **options: iter([iter([text])]))
    assert ptp("run", demo_bundle, "--image", photo, "--prompt", QUESTION) == 0
    assert capsys.readouterr().out == "a\tb\n[2Jc3mde 👩\u200d👧\u3000你\u00a0क्\u200dष\n"


@pytest.mark.parametrize("verb", ["run", "inspect"])
@pytest.mark.parametrize("wrong", ["--alpha", "--image"])
def test_what_can_be_refused_is_refused_before_the_bundle_is_read(
    verb: str, wrong: str, copied_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (copied_bundle / "tokenizer.json").open("ab") as file:
        file.write(b" ")  # would be found when the files are verified
    options = {"--image": photo, "--prompt": QUESTION} | {wrong: {"--alpha": 2, "--image": "none.png"}[wrong]}
    extra = ["--out", photo.parent / "kept.png"] if verb == "inspect" else []
    assert ptp(verb, copied_bundle, *(x for pair in options.items() for x in pair), *extra) == 1
    assert {"--alpha": "expected 0 to 1", "--image": "none.png is missing"}[wrong] in capsys.readouterr().err


def test_names_of_files_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with hash_progress(0) as say:
        say("a[/b][red].onnx\\", 1, 2)
    assert "verifying a[/b][red].onnx\\" in capsys.readouterr().err
