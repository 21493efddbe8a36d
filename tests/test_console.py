"""What a program prints: in any encoding, errors as one line, whatever happens."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptp import cli, console
from ptp.bundle import writer
from ptp.errors import ConfigError

QUESTION = "Which digit is on the blue hexagon?"


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def printed(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)  # type: ignore[attr-defined]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs the program with streams of an encoding; it returns exit status and both texts."""

    def call(encoding: str, *arguments: object) -> tuple[int, str, str]:
        out, err = stream(encoding), stream(encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        try:
            cli.main([str(x) for x in arguments])
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, printed(out), printed(err)

    return call


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch):
    """Let every answer be one that few encodings hold."""
    from ptp.runtime.generation import Generation

    def pieces(generation: Generation):
        yield from ("5 × 猫\n", "😀 é\u202e")

    monkeypatch.setattr(Generation, "_generate", pieces)


@pytest.mark.parametrize(
    ("encoding", "answer"),
    [
        ("utf-8", "5 × 猫\n😀 é\n"),
        ("cp1252", "5 × \\u732b\n\\U0001f600 é\n"),
        ("latin-1", "5 × \\u732b\n\\U0001f600 é\n"),
        ("ascii", "5 \\xd7 \\u732b\n\\U0001f600 \\xe9\n"),
    ],
)
def test_an_answer_is_printed_in_any_encoding(encoding: str, answer: str, run, answering, demo_bundle, photos) -> None:
    arguments = ("run", demo_bundle, "--image", photos["cat"], "--prompt", QUESTION)
    assert run(encoding, *arguments) == (0, answer, "")
    status, out, err = run(encoding, *arguments, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["text"] == "5 × 猫\n😀 é\u202e"


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("verify",),
        ("build", "--backend", "tensorrt-rtx", "--target", "sm86", "--dry-run"),
        ("--help",),
        ("export", "--help"),
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_tables_and_help_are_printed_in_any_encoding(encoding: str, arguments: tuple, run, demo_bundle) -> None:
    verb, *options = arguments
    status, out, err = run(encoding, verb, *([] if "--help" in arguments else [demo_bundle]), *options)
    assert (status, err) == (0, "")
    assert out


def test_a_plan_is_printed_in_ascii(run) -> None:
    status, out, err = run("ascii", "export", "--keep", "0.25", "--dry-run")
    assert (status, err) == (0, "")
    assert "112\\xd7112 pixels" in out


def test_an_error_is_one_line_in_any_encoding(run, tmp_path: Path) -> None:
    status, out, err = run("ascii", "inspect", tmp_path / "猫")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert "\\u732b is not a bundle" in err
    assert err.count("\n") == 1


def test_a_program_without_streams_runs(monkeypatch: pytest.MonkeyPatch, demo_bundle) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", str(demo_bundle)])
    assert not ended.value.code
    for name in ("stdout", "stderr"):
        getattr(sys, name).close()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            KeyError("what"),
            1,
            "internal error; got KeyError: 'what'; please report it, with what PTP_TRACEBACK=1 shows",
        ),
        (ValueError("a\n\nb" * 1000), 1, "internal error; got ValueError: a; please report it"),
        (RecursionError("deep"), 1, "internal error; got RecursionError: deep"),
        (MemoryError("Unable to allocate 9 TiB"), 1, "there is not enough memory; got Unable to allocate 9 TiB"),
        (MemoryError(), 1, "there is not enough memory"),
        (OSError(28, "No space left on device", "x.png"), 1, "No space left on device; got x.png"),
        (ConfigError("no"), 1, "no"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (console.Terminated(), 143, "ended by SIGTERM"),
    ],
)
def test_whatever_happens_is_one_line(error, status: int, line: str, run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.delenv(console.TRACEBACK, raising=False)
    monkeypatch.setattr("ptp.runtime.cli.read_manifest", fail)
    found, out, err = run("utf-8", "inspect", "x")
    assert (found, out) == (status, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_an_interruption_that_a_library_turns_into_its_own_error_is_one(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                raise ImportError("initialization failed") from error
        except ImportError as error:
            raise ConfigError("the backend is not installed") from error

    monkeypatch.setattr("ptp.runtime.cli.read_manifest", load)
    assert run("utf-8", "inspect", "x") == (130, "", "error: interrupted\n")


def test_an_unexpected_error_is_shown_whole_where_that_is_asked_for(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("what")

    monkeypatch.setenv(console.TRACEBACK, "1")
    monkeypatch.setattr("ptp.runtime.cli.read_manifest", fail)
    with pytest.raises(KeyError, match="what"):
        run("utf-8", "inspect", "x")


def test_an_interrupted_answer_ends_its_line(run, demo_bundle, photos, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptp.runtime.generation import Generation

    def pieces(generation: Generation):
        yield "half"
        raise KeyboardInterrupt

    monkeypatch.setattr(Generation, "_generate", pieces)
    assert run("utf-8", "run", demo_bundle, "--image", photos["cat"], "--prompt", QUESTION) == (
        130,
        "half\n",
        "error: interrupted\n",
    )


def test_an_interruption_says_how_to_go_on(tmp_path: Path) -> None:
    for resume, note in ((None, "nothing was written"), ("x", "the same command goes on from there")):
        with pytest.raises(KeyboardInterrupt) as ended, writer.staged(tmp_path / "out", force=False, resume=resume):
            raise KeyboardInterrupt
        assert ended.value.__notes__[0].endswith(note)
    with pytest.raises(KeyboardInterrupt) as ended, console.going_on(tmp_path):
        raise KeyboardInterrupt
    assert ended.value.__notes__ == [f"{tmp_path} holds what was done, and the same command goes on from there"]


PROGRAM = """
import os, signal, sys, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from ptp import program

number = getattr(signal, sys.argv[1])

def end(*_):
    warnings.warn("of a library")
    os.write(2, b"of a library in C")
    try:
        os.kill(os.getpid(), number)
        signal.pause()
    finally:
        for further in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), further)

import ptp.runtime.cli
ptp.runtime.cli.read_manifest = end
program.run(["inspect", "x"])
"""
WHILE_IT_LOADS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from ptp import program

class Finder:
    def find_spec(name, *_):
        if name == "ptp.cli":
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
            signal.pause()

sys.meta_path.insert(0, Finder)
program.run([])
"""


@pytest.mark.parametrize("program", [PROGRAM, WHILE_IT_LOADS], ids=["at work", "while it loads"])
@pytest.mark.parametrize(
    ("name", "status", "line"), [("SIGINT", 130, "error: interrupted\n"), ("SIGTERM", 143, "error: ended by SIGTERM\n")]
)
def test_a_signal_ends_a_program_in_one_line_whatever_signal_follows(
    name: str, status: int, line: str, program: str
) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONWARNINGS", console.TRACEBACK)}
    done = subprocess.run(
        [sys.executable, "-c", program, name], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", line)


def test_a_full_disk_is_one_line(demo_bundle) -> None:
    program = "from ptp import cli; cli.main(['inspect', __import__('sys').argv[1], '--json'])"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, str(demo_bundle)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_names_that_are_no_text_and_names_that_a_terminal_would_obey_are_shown(
    run, demo_bundle, photos, tmp_path
) -> None:
    for name, shown in ((os.fsdecode(b"k\xff.png"), "k\\udcff.png"), ("k\x1b[31m\u202e.png", "k[31m.png")):
        arguments = ("inspect", demo_bundle, "--image", photos["cat"], "--prompt", QUESTION, "--out", tmp_path / name)
        status, out, err = run("utf-8", *arguments)
        assert (status, err) == (0, "")
        assert shown in out
        status, out, err = run("utf-8", *arguments, "--json")
        assert (status, err) == (0, "")
        assert Path(json.loads(out)["visual_tokens"]["picture"]).name == name


def test_a_stage_is_kept_where_a_library_turns_an_interruption_into_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as ended, writer.staged(tmp_path / "out", force=False, resume="x") as stage:
        stopped()
    assert stage.is_dir()
    assert ended.value.__notes__[0].endswith("the same command goes on from there")


def stopped() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise ConfigError("a gate failed") from error
