"""The TensorRT backend's own work, on a stand-in that computes with ONNX Runtime: TensorRT itself takes no part."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptp.bundle import Bundle, open_bundle
from ptp.bundle.engine import KINDS, EngineConfig, EngineKind, engine_folder, graph_of, read_engine_config
from ptp.bundle.manifest import FileEntry
from ptp.cuda import CudaDevice
from ptp.demo import CHECKPOINT
from ptp.engines.profiles import default_max_context, profiles_of
from ptp.errors import PtpError
from ptp.runtime.backends.engine_files import Machine, find_engine

SCENES = [CHECKPOINT / f"evaluation/scene-{i}.jpg" for i in range(3)]
QUESTION = "Which digit is on the blue hexagon?"
DEVICE = CudaDevice(name="Stand-in", compute_capability=(8, 7), memory_bytes=1 << 33)
MACHINE = Machine(backend="tensorrt", version="10.3.0.26", device=DEVICE)
TARGET = "orin-nano"


def write_engines(folder: Path, target: str = TARGET, max_context: int | None = None) -> Bundle:
    """Write engines as the stand-in reads them, with the fingerprints that `ptp build` would write."""
    bundle = open_bundle(folder)
    context = max_context or default_max_context(bundle.manifest)
    for kind in KINDS:
        spec, profiles = graph_of(kind, bundle.manifest.graphs), profiles_of(kind, bundle.manifest, context)
        engine = f"{folder} {kind} {len(profiles)}\n".encode()
        there = engine_folder(folder, "tensorrt", target, kind)
        there.mkdir(parents=True)
        config = EngineConfig(
            kind=kind,
            backend="tensorrt",
            target=target,
            compute_capability=(8, 7),
            builder=MACHINE.version,
            precision="fp32",
            flags={},
            profiles=profiles,
            max_context=context,
            inputs=spec.inputs,
            outputs=spec.outputs,
            graph=spec.file,
            graph_files={name: entry for name, entry in bundle.manifest.files.items() if name == spec.file},
            engine=FileEntry(bytes=len(engine), sha256=hashlib.sha256(engine).hexdigest()),
            seconds=1.0,
            peak_bytes=1,
            estimated_bytes=1,
        )
        (there / config.file_name).write_bytes(engine)
        (there / "config.json").write_text(config.to_json())
    return bundle


@pytest.fixture(scope="module")
def with_engines(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("engines") / "bundle"))
    write_engines(folder)
    return folder


@pytest.fixture
def own(with_engines: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil; the engine files still name the first one, which the stand-in loads."""
    return Path(shutil.copytree(with_engines, tmp_path / "own"))


def change(bundle: Path, kind: EngineKind, /, **fields: Any) -> None:
    folder = engine_folder(bundle, "tensorrt", TARGET, kind)
    config = read_engine_config(folder).model_copy(update=fields)
    (folder / "config.json").write_text(config.to_json())


def test_the_same_answers_as_onnxruntime(engine_probe, with_engines: Path) -> None:
    questions = [{"image": scene, "question": QUESTION, "max_new_tokens": 6} for scene in SCENES]
    questions.append({"image": SCENES[0], "question": "How many?", "stop": ["zzz"], "max_new_tokens": 2})
    expected = engine_probe("ask", bundle=with_engines, questions=questions)
    assert engine_probe("ask", bundle=with_engines, backend="tensorrt", questions=questions) == expected
    assert any(len(answer["ids"]) > 1 for answer in expected)


SPOILED: dict[str, Callable[[Path], Any]] = {
    "no engines": lambda own: shutil.rmtree(own / "engines"),
    "another GPU": lambda own: change(own, "visual", compute_capability=(11, 0)),
    "another version": lambda own: change(own, "visual", builder="10.16.0.1"),
    "another precision": lambda own: change(own, "visual", precision="fp16"),
    "another kind": lambda own: change(own, "visual", kind="llm"),
    "another graph": lambda own: change(own, "visual", graph="onnx/embed_tokens.onnx"),
    "no hashes": lambda own: change(own, "visual", graph_files={}),
    "other weights": lambda own: change(
        own, "visual", graph_files={"onnx/vision_encoder.onnx": FileEntry(bytes=1, sha256="0" * 64)}
    ),
    "altered": lambda own: (own / f"engines/tensorrt/{TARGET}/visual/visual.engine").write_text("x"),
    "missing": lambda own: (own / f"engines/tensorrt/{TARGET}/visual/visual.engine").unlink(),
    "two that fit": lambda own: write_engines(own, "orin-nx"),
}


def find_engines(bundle: Bundle) -> None:
    """Look for engines in the order in which a session loads them."""
    kinds: tuple[EngineKind, ...] = ("embed", "visual", "llm")
    for kind in kinds:
        find_engine(bundle, graph_of(kind, bundle.manifest.graphs), kind, MACHINE, None)


@pytest.mark.parametrize("name", SPOILED)
def test_refusals_have_python_s_sentence(engine_probe, own: Path, name: str) -> None:
    SPOILED[name](own)
    bundle = open_bundle(own)
    with pytest.raises(PtpError) as expected:
        find_engines(bundle)
    error = engine_probe.refusal("ask", bundle=own, backend="tensorrt", questions=[])
    assert str(error) == str(expected.value).replace("choose one with --target", "choose one with target")


def test_a_version_without_its_last_number_is_the_same(engine_probe, own: Path) -> None:
    for kind in KINDS:
        change(own, kind, builder="10.3.0")
    assert engine_probe("ask", bundle=own, backend="tensorrt", questions=[]) == []


def test_a_fingerprint_that_is_malformed(engine_probe, own: Path) -> None:
    (own / f"engines/tensorrt/{TARGET}/visual/config.json").write_text('{"kind": "visual"}')
    error = engine_probe.refusal("ask", bundle=own, backend="tensorrt", questions=[])
    assert "config.json is not an engine's fingerprint; got backend: is missing" in str(error)


def test_an_engine_that_the_library_refuses(engine_probe, own: Path) -> None:
    engine = b"no engine at all"
    (own / f"engines/tensorrt/{TARGET}/visual/visual.engine").write_bytes(engine)
    change(own, "visual", engine=FileEntry(bytes=len(engine), sha256=hashlib.sha256(engine).hexdigest()))
    error = engine_probe.refusal("ask", bundle=own, backend="tensorrt", questions=[])
    assert "tensorrt 10.3.0.26 cannot load" in str(error)
    assert "got The engine plan file is not compatible with this version of TensorRT; build it again: ptp" in str(error)


def test_tensors_that_differ(engine_probe, own: Path) -> None:
    config = read_engine_config(engine_folder(own, "tensorrt", TARGET, "visual"))
    first = config.inputs[0].model_copy(update={"dtype": "float16"})
    change(own, "visual", inputs=(first, *config.inputs[1:]))
    error = engine_probe.refusal("ask", bundle=own, backend="tensorrt", questions=[])
    assert "visual.engine are not those of its config.json; got pixel_values is float32" in str(error)


def test_an_answer_that_outgrows_the_cache(engine_probe, demo_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "small"))
    manifest = open_bundle(folder).manifest
    longest = manifest.prompting.max_prompt + manifest.pruning.num_kept
    write_engines(folder, max_context=longest + 1)
    asked = {"image": SCENES[0], "question": QUESTION, "max_new_tokens": longest}
    (answer,) = engine_probe("ask", bundle=folder, backend="tensorrt", questions=[asked])
    assert answer["error"].startswith("the prompt, the image and the answer do not fit into the engine's cache; got ")
    assert f"expected at most {longest + 1} tokens; lower max_new_tokens" in answer["error"]


def test_shapes_without_a_profile(engine_probe, own: Path) -> None:
    config = read_engine_config(engine_folder(own, "tensorrt", TARGET, "llm"))
    narrow = [
        profile.model_copy(
            update={
                "shapes": {
                    # the mask's says what the cache has room for, which is asked before
                    k: v if k == "attention_mask" else v.model_copy(update={"max": v.min})
                    for k, v in profile.shapes.items()
                }
            }
        )
        for profile in config.profiles
    ]
    change(own, "llm", profiles=tuple(narrow))
    asked = {"image": SCENES[0], "question": QUESTION}
    (answer,) = engine_probe("ask", bundle=own, backend="tensorrt", questions=[asked])
    assert "llm.engine has no profile for these shapes; got " in answer["error"]


@pytest.mark.parametrize("engine_probe", ["no device"], indirect=True)
def test_without_a_device(engine_probe, with_engines: Path) -> None:
    error = engine_probe.refusal("ask", bundle=with_engines, backend="tensorrt", questions=[])
    assert str(error).startswith("the backend tensorrt needs an NVIDIA GPU; got no CUDA device; run on a machine")
