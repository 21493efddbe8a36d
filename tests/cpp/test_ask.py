"""Answers equal the Python runtime's, token for token; the programs and the installed package work."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ptp.bundle.writer import file_entry
from ptp.demo import CHECKPOINT
from ptp.errors import PtpError
from ptp.export.config import ExportConfig
from ptp.export.pipeline import export
from ptp.runtime.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
SCENES = [CHECKPOINT / f"evaluation/scene-{i}.jpg" for i in range(3)]
QUESTIONS = [
    "Which digit is on the blue hexagon?",
    "How many dogs are there?",
    "Which letter is on the blue circle? 😀",
]
CONSUMER = {
    "CMakeLists.txt": "cmake_minimum_required(VERSION 3.22)\nproject(app CXX)\nfind_package(ptp 1.0 REQUIRED)\n"
    "add_executable(app app.cpp)\ntarget_link_libraries(app ptp::ptp)\n",
    "app.cpp": "#include <ptp.h>\n#include <cstdio>\nint main() { char error[200]; ptp_session* session;\n"
    'ptp_status status = ptp_open("nowhere", nullptr, &session, error, sizeof error);\n'
    'std::printf("%s %s %s\\n", ptp_version(), ptp_status_name(status), error); }\n',
}


C_CONSUMER = """#include <ptp.h>
#include <stdio.h>
int main(void) {
    ptp_generate_options options;
    ptp_generate_options_init(&options);
    printf("%d %d\\n", (int)options.max_new_tokens, (int)ptp_open("nowhere", NULL, NULL, NULL, 0) + 1);
    return 0;
}
"""


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


@pytest.fixture(scope="module")
def unusual_bundle(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the demo's bundles are not: K at run time, FP16, two images a call, consecutive positions, attention."""
    out = tmp_path_factory.mktemp("unusual") / "bundle"
    config = ExportConfig(
        model=str(tiny_checkpoint("mistral")),
        out=out,
        keep=Fraction("0.3"),
        keep_range=(Fraction("0.1"), Fraction("0.5")),
        instruction="attention",
        alpha="auto",
        positions="compact",
        precision="fp16",
        batch=2,
        max_prompt=48,
    )
    export(config)
    return out


def test_an_unusual_bundle(probe, unusual_bundle: Path) -> None:
    pipeline = Pipeline.load(unusual_bundle, threads=1)
    options = [{}, {"keep": "0.1"}, {"keep": "0.5"}, {"keep": "1/3"}, {"keep": "0.30000000000000001"}, {"alpha": 0.25}]
    asked = [{"image": SCENES[i % 3], "question": QUESTIONS[i % 3]} | x for i, x in enumerate(options)]
    for item, answer in zip(asked, probe("ask", bundle=unusual_bundle, questions=asked), strict=True):
        choices = {key: value for key, value in item.items() if key not in ("image", "question")}
        stream = pipeline.stream(item["image"], item["question"], max_new_tokens=16, **choices)
        assert answer["positions"] == stream.visual.positions.tolist(), item
        assert answer["ids"] == list(stream.answer().token_ids), item
    for keep in ("0.05", "1", "none", "0"):
        (answer,) = probe("ask", bundle=unusual_bundle, questions=[asked[0] | {"keep": keep}])
        with pytest.raises(PtpError) as error:
            pipeline.encode(SCENES[0], QUESTIONS[0], keep=keep)
        assert answer["error"].split("; expected a fraction")[0] == str(error.value).split("; expected a fraction")[0]


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


def test_images_are_bounded_like_in_python(probe, demo_bundle: Path) -> None:
    bounded = Pipeline.load(demo_bundle, max_pixels=1000)
    question = {"image": SCENES[0], "question": QUESTIONS[0]}
    (answer,) = probe("ask", bundle=demo_bundle, questions=[question], max_pixels=1000)
    with pytest.raises(PtpError) as error:
        bounded.generate(SCENES[0], QUESTIONS[0])
    assert answer["error"] == str(error.value)
    assert answer["error"].endswith("pixels; expected at most 1000")
    refusal = probe.refusal("ask", bundle=demo_bundle, questions=[question], max_pixels=-1)
    assert str(refusal) == "max_pixels is out of range; got -1; expected 1 to 100000000, or 0"


def test_a_bundle_of_a_token_without_embedding_is_refused_like_in_python(probe, copied_bundle: Path) -> None:
    path, manifest = copied_bundle / "tokenizer.json", copied_bundle / "ptp_config.json"
    tokenizer, data = json.loads(path.read_text()), json.loads(manifest.read_text())
    ids = set(tokenizer["model"]["vocab"].values()) | {token["id"] for token in tokenizer["added_tokens"]}
    for beyond in range(max(ids) + 1, data["language_model"]["vocab_size"] + 1):
        added = {"id": beyond, "content": f"<loc_{beyond}>"}
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | added)
    path.write_text(json.dumps(tokenizer))
    data["files"][path.name] = file_entry(path).model_dump()
    manifest.write_text(json.dumps(data))
    with pytest.raises(PtpError) as error:
        Pipeline.load(copied_bundle)
    assert str(error.value).split("; ")[1:3] == [f"got id {beyond}", f"expected ids below vocab_size {beyond}"]
    question = {"image": SCENES[0], "question": QUESTIONS[0]}
    assert str(probe.refusal("ask", bundle=copied_bundle, questions=[question])) == str(error.value)


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
    assert found["together"] == found["alone"]
    *kept, answer = found["alone"]
    assert kept[0] == kept[2] != kept[1]
    assert answer


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


def test_the_readme_s_program(cpp_build, cpp_environment, demo_bundle: Path, pipeline: Pipeline, tmp_path) -> None:
    (program,) = re.findall(r"```cpp\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "readme.cpp").write_text(program)
    (tmp_path / "bundle").symlink_to(demo_bundle)
    (tmp_path / "scene.jpg").symlink_to(SCENES[0])
    build = cpp_build("tests")
    compiled = run(
        *("g++", "-std=c++17", "-Wall", "-Werror", f"-I{ROOT / 'cpp/include'}", tmp_path / "readme.cpp"),
        *("-o", tmp_path / "readme", f"-L{build}", "-lptp", f"-Wl,-rpath,{build}"),
        environment=dict(os.environ),
    )
    assert compiled.returncode == 0, compiled.stderr
    result = subprocess.run(
        [tmp_path / "readme"], cwd=tmp_path, env=cpp_environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == pipeline.generate(SCENES[0], QUESTIONS[0]).text


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
    header = (ROOT / "cpp/include/ptp.h").read_text()
    assert names == set(re.findall(r"^PTP_API .*?\b(ptp_\w+)\(", header, re.MULTILINE))


def test_the_installed_package(cpp_build, cpp_environment, tmp_path: Path) -> None:
    prefix, app = tmp_path / "prefix", tmp_path / "app"
    run("cmake", "--install", cpp_build("tests"), "--prefix", prefix, environment=dict(os.environ))
    app.mkdir()
    for name, text in CONSUMER.items():
        (app / name).write_text(text)
    environment = os.environ | {"CMAKE_PREFIX_PATH": str(prefix)}
    for command in (["-G", "Ninja", "-S", app, "-B", app / "build"], ["--build", app / "build"]):
        result = run("cmake", *command, environment=environment)
        assert result.returncode == 0, result.stdout + result.stderr
    result = run(app / "build/app", environment=cpp_environment)
    assert result.stdout.startswith("1.0.0 PTP_ERROR_BUNDLE nowhere is not a bundle; expected a folder with ptp_config")
    (pkgconfig,) = prefix.rglob("ptp.pc")
    (app / "app.c").write_text(C_CONSUMER)
    moved = prefix.rename(tmp_path / "moved")  # pkg-config's file holds no path of the build
    environment = os.environ | {"PKG_CONFIG_PATH": str(moved / pkgconfig.parent.relative_to(prefix))}
    flags = run("pkg-config", "--cflags", "--libs", "ptp", environment=environment).stdout.split()
    program = app / "app_c"
    result = run("gcc", "-std=c99", "-Wall", "-Werror", "-pedantic", app / "app.c", "-o", program, *flags,
                 environment=environment)  # fmt: skip
    assert result.returncode == 0, result.stderr
    libraries = {"LD_LIBRARY_PATH": str(next(moved.rglob("libptp.so")).parent)}
    result = run(program, environment=environment | libraries)
    assert result.stdout == "128 2\n", result.stderr


VALGRIND = (
    "valgrind",
    "--quiet",
    "--error-exitcode=9",
    "--leak-check=full",
    "--errors-for-leak-kinds=definite",
    f"--suppressions={Path(__file__).with_name('valgrind.supp')}",
)


def test_valgrind(cpp_build, cpp_environment, demo_bundle: Path, tmp_path: Path) -> None:
    tokenizer = CHECKPOINT / "tokenizer.json"
    orders = [
        {"do": "manifest", "path": demo_bundle / "ptp_config.json"},
        {"do": "encode", "tokenizer": tokenizer, "texts": QUESTIONS, "special": True},
        {"do": "decode", "tokenizer": tokenizer, "ids": [[5, 6, 200, 201, 7]]},
        {"do": "image", "path": SCENES[0], "out": tmp_path / "image"},
        {"do": "image", "path": tokenizer, "out": tmp_path / "image"},
    ]
    lines = "".join(json.dumps(order, default=str) + "\n" for order in orders)
    program = [*VALGRIND, cpp_build("tests") / "ptp_probe"]
    result = subprocess.run(program, input=lines, env=cpp_environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert ["error" in answer for answer in answers] == [False] * 4 + [True]


@pytest.mark.slow
def test_valgrind_with_a_whole_answer(cpp_build, cpp_environment, pipeline: Pipeline, demo_bundle: Path) -> None:
    program = [cpp_build("tests") / "ask", demo_bundle, SCENES[0], QUESTIONS[0], "--max-new-tokens", 2, "--threads", 1]
    result = run(*VALGRIND, *program, environment=cpp_environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == pipeline.generate(SCENES[0], QUESTIONS[0], max_new_tokens=2).text + "\n"
