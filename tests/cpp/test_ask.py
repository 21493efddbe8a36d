"""Answers equal the Python runtime's, token for token; the programs and the installed package work."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ptp.demo import CHECKPOINT
from ptp.errors import PtpError
from ptp.runtime.pipeline import Pipeline

pytestmark = pytest.mark.slow  # needs a compiler and what scripts/install-cpp installs

SCENES = [CHECKPOINT / f"evaluation/scene-{i}.jpg" for i in range(3)]
QUESTIONS = [
    "Which digit is on the black square?",
    "How many clocks are there?",
    "Which letter is on the red square? 😀",
]
CONSUMER = {
    "CMakeLists.txt": "cmake_minimum_required(VERSION 3.22)\nproject(app CXX)\nfind_package(ptp 1.0 REQUIRED)\n"
    "add_executable(app app.cpp)\ntarget_link_libraries(app ptp::ptp)\n",
    "app.cpp": "#include <ptp.h>\n#include <cstdio>\nint main() { char error[200]; ptp_session* session;\n"
    'ptp_status status = ptp_open("nowhere", nullptr, &session, error, sizeof error);\n'
    'std::printf("%s %s %s\\n", ptp_version(), ptp_status_name(status), error); }\n',
}


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return Pipeline.load(demo_bundle, threads=1)


def test_the_same_greedy_tokens(probe, pipeline: Pipeline, demo_bundle: Path) -> None:
    asked = [{"image": image, "question": question} for image in SCENES for question in QUESTIONS]
    asked += [
        {"image": SCENES[0], "question": QUESTIONS[0], "alpha": 0.0},
        {"image": SCENES[0], "question": QUESTIONS[0], "alpha": 1.0, "max_new_tokens": 1},
        {"image": SCENES[1], "question": QUESTIONS[1], "stop": [" "]},
    ]
    answers = probe("ask", bundle=demo_bundle, questions=asked)
    for item, answer in zip(asked, answers, strict=True):
        options = {"max_new_tokens": 16} | {k: v for k, v in item.items() if k not in ("image", "question")}
        stream = pipeline.stream(item["image"], item["question"], **options)
        expected = stream.answer()
        assert answer["ids"] == list(expected.token_ids), item
        assert answer["text"] == expected.text
        assert ("eos", "stop", "length")[answer["stop_reason"]] == expected.stop_reason
        assert answer["positions"] == stream.visual.positions.tolist()
        assert answer["budgets"] == stream.visual.tile_budgets.tolist()
    assert len({tuple(answer["ids"]) for answer in answers}) > 2


def test_a_bundle_without_instruction(probe, full_bundle: Path) -> None:
    pipeline = Pipeline.load(full_bundle, threads=1)
    (answer,) = probe("ask", bundle=full_bundle, questions=[{"image": SCENES[0], "question": QUESTIONS[0]}])
    stream = pipeline.stream(SCENES[0], QUESTIONS[0], max_new_tokens=16)
    assert answer["ids"] == list(stream.answer().token_ids)
    assert answer["positions"] == stream.visual.positions.tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"question": ""},
        {"question": "an <image>"},
        {"question": "why " * 200},
        {"max_new_tokens": 0},
        {"max_new_tokens": 100_000},
        {"keep": "0.5"},
        {"keep": "1.5"},
        {"image": Path("nowhere.jpg")},
    ],
)
def test_what_is_refused_gets_python_s_sentence(probe, pipeline: Pipeline, demo_bundle: Path, change: dict) -> None:
    item = {"image": SCENES[0], "question": QUESTIONS[0]} | change
    (answer,) = probe("ask", bundle=demo_bundle, questions=[item])
    options = {k: v for k, v in item.items() if k not in ("image", "question")}
    with pytest.raises(PtpError) as error:
        pipeline.generate(item["image"], item["question"], **options)
    assert answer["error"] == str(error.value)


def test_misuse_of_the_interface(probe, demo_bundle: Path) -> None:
    codes = probe("misuse", bundle=demo_bundle, image=SCENES[0])
    assert codes.pop("fine") is True
    assert codes["in a callback"][0] == "PTP_ERROR_BUSY"
    assert codes["bad text"] == ["PTP_ERROR_PROMPT", codes["bad text"][1]]
    assert codes["huge image"][1].startswith("the image is too large")
    assert codes["few pixels"][1] == "the image's pixels do not fit its size; got 12 bytes; expected 2 rows of 9"
    assert all(code.startswith("PTP_ERROR_") for code, _ in codes.values())
    assert all("\n" not in sentence for _, sentence in codes.values())


def test_several_threads_share_a_session(probe, demo_bundle: Path) -> None:
    found = probe("threads", bundle=demo_bundle, image=SCENES[0], question=QUESTIONS[0])
    assert found["counts"] == [found["alone"]] * 4
    assert found["tokens"] > 0


def test_backends_that_are_not_there(probe, demo_bundle: Path) -> None:
    error = probe.refusal("ask", bundle=demo_bundle, backend="tensorrt-rtx", questions=[])
    assert str(error).startswith("this libptp was built with")
    assert error.status == "PTP_ERROR_BACKEND"
    error = probe.refusal("ask", bundle=demo_bundle, backend="magic", questions=[])
    assert str(error) == "no such backend; got 'magic'; expected onnxruntime or tensorrt or tensorrt-rtx"


def run(*command: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(x) for x in command], env=environment, capture_output=True, text=True, check=False)


def test_ask(cpp_build, cpp_environment, pipeline: Pipeline, demo_bundle: Path, tmp_path: Path) -> None:
    program = cpp_build("tests") / "ask"
    result = run(program, demo_bundle, SCENES[0], QUESTIONS[0], environment=cpp_environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == pipeline.generate(SCENES[0], QUESTIONS[0]).text + "\n"
    assert run(program, environment=cpp_environment).returncode == 2
    result = run(program, tmp_path, SCENES[0], "What?", environment=cpp_environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: {tmp_path} is not a bundle; expected a folder with ptp_config.json; make one with ptp-export\n"
    )
    missing = cpp_environment | {"PTP_ONNXRUNTIME": "nowhere.so"}
    result = run(program, demo_bundle, SCENES[0], "What?", environment=missing)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ONNX Runtime cannot be loaded; got nowhere.so")


def test_vision_only(cpp_build, cpp_environment, pipeline: Pipeline, demo_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.bin"
    program = cpp_build("tests") / "vision_only"
    result = run(program, demo_bundle, SCENES[1], QUESTIONS[0], out, environment=cpp_environment)
    assert (result.returncode, result.stderr) == (0, "")
    expected = pipeline.encode(SCENES[1], QUESTIONS[0])
    assert f"{expected.count} of {expected.packed_length} tokens kept" in result.stdout
    data = out.read_bytes()
    count, hidden = np.frombuffer(data, np.int64, 2)
    positions = np.frombuffer(data, np.int64, count, offset=16)
    features = np.frombuffer(data, np.float32, offset=16 + 8 * count).reshape(count, hidden)
    assert np.array_equal(positions, expected.positions)
    np.testing.assert_allclose(features, expected.features, rtol=1e-5, atol=1e-5)


def test_only_the_interface_is_exported(cpp_build) -> None:
    library = cpp_build("tests") / "libptp.so"
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    header = (Path(__file__).parents[2] / "cpp/include/ptp.h").read_text()
    assert names == set(re.findall(r"^PTP_API .*?\b(ptp_\w+)\(", header, re.MULTILINE))


def test_the_installed_package(cpp_build, tmp_path: Path) -> None:
    prefix, app = tmp_path / "prefix", tmp_path / "app"
    run("cmake", "--install", cpp_build("tests"), "--prefix", prefix, environment=dict(os.environ))
    app.mkdir()
    for name, text in CONSUMER.items():
        (app / name).write_text(text)
    environment = os.environ | {"CMAKE_PREFIX_PATH": str(prefix)}
    for command in (["-G", "Ninja", "-S", app, "-B", app / "build"], ["--build", app / "build"]):
        result = run("cmake", *command, environment=environment)
        assert result.returncode == 0, result.stdout + result.stderr
    result = run(app / "build/app", environment=environment)
    assert result.stdout.startswith("1.0.0 PTP_ERROR_BUNDLE nowhere is not a bundle; expected a folder with ptp_config")
    (pkgconfig,) = prefix.rglob("ptp.pc")
    assert "-lptp" in pkgconfig.read_text()


def test_valgrind(cpp_build, cpp_environment, pipeline: Pipeline, demo_bundle: Path) -> None:
    # ONNX Runtime's own leaks and reads are not looked at
    command = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"]
    suppressions = Path(__file__).with_name("valgrind.supp")
    program = [cpp_build("tests") / "ask", demo_bundle, SCENES[0], QUESTIONS[0], "--max-new-tokens", 2, "--threads", 1]
    result = run(*command, f"--suppressions={suppressions}", *program, environment=cpp_environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == pipeline.generate(SCENES[0], QUESTIONS[0], max_new_tokens=2).text + "\n"
