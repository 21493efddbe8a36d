"""Engines on the fake device: which are taken, what is refused, and how memory and CUDA graphs are used."""

import inspect
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import fake_engine
import numpy as np
import pytest
import tensorrt_rtx
from cuda.bindings import runtime as real_cuda

from ptp import Pipeline
from ptp.bundle import open_bundle
from ptp.bundle.engine import CONFIG_NAME, KINDS, engine_folder, read_engines
from ptp.errors import BackendError, ConfigError, IntegrityError, PromptError
from ptp.export.config import ExportConfig
from ptp.export.pipeline import export
from ptp.runtime.backends.registry import graph_loader
from ptp.runtime.comparison import Agreement
from ptp.runtime.verify import arithmetic_of, verify_bundle

RTX = "tensorrt-rtx"
QUESTION = "What is in the picture?"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return fake_engine.install(monkeypatch)


@pytest.fixture
def folder(copied_bundle: Path) -> Path:
    """A bundle with engines, which a test may spoil."""
    fake_engine.write_engines(copied_bundle)
    return copied_bundle


def config_of(folder: Path, kind: str = "llm", target: str = "sm86") -> Path:
    return engine_folder(folder, RTX, target, kind) / CONFIG_NAME  # type: ignore[arg-type]


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def never_ends(folder: Path) -> None:
    """Leave the end token out of a bundle, so that every answer is as long as it may be."""
    path = folder / "ptp_config.json"
    manifest = json.loads(path.read_text())
    manifest["prompting"]["eos_token_ids"] = []
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fake_engine.FakeRuntime, tensorrt_rtx.Runtime),
        (fake_engine.FakeEngine, tensorrt_rtx.ICudaEngine),
        (fake_engine.FakeContext, tensorrt_rtx.IExecutionContext),
    ],
)
def test_what_the_fake_offers_is_there_in_the_real_bindings(ours: type, theirs: type) -> None:
    offered = {name for name, _ in inspect.getmembers(ours) if not name.startswith("_")} - fake_engine.OWN
    assert offered
    assert offered <= set(dir(theirs))


def test_the_fakes_functions_are_there_in_cuda_bindings() -> None:
    offered = {name for name in dir(fake_cuda.FakeCuda) if name.startswith("cuda")}
    assert len(offered) > 12
    assert offered <= set(dir(real_cuda))
    for ours, theirs in (
        (fake_cuda.Error, real_cuda.cudaError_t),
        (fake_cuda.CopyKind, real_cuda.cudaMemcpyKind),
        (fake_cuda.CaptureMode, real_cuda.cudaStreamCaptureMode),
    ):
        assert {x.name: int(x) for x in ours}.items() <= {x.name: int(x) for x in theirs}.items()


def test_memory_is_allocated_once_and_the_cache_stays_on_the_device(
    folder: Path, fake: SimpleNamespace, photos: dict[str, Path]
) -> None:
    never_ends(folder)
    pipeline = Pipeline.load(folder, backend=RTX)
    for temperature in (0.0, 1.0):
        pipeline.generate(photos["cat"], QUESTION, max_new_tokens=3, temperature=temperature)
    allocated, model = len(fake.cuda.blocks), pipeline.manifest.language_model
    # greedy: only the token comes down; drawn: the logits, and the token goes up
    for temperature, up_each, down_each in ((0.0, [], [8]), (1.0, [8], [4 * model.vocab_size])):
        stream = pipeline.stream(photos["cat"], QUESTION, max_new_tokens=12, temperature=temperature, seed=1)
        fake.cuda.copied.clear()
        fake.library.calls.clear()
        assert len(stream.answer().token_ids) == 12
        assert len(fake.cuda.blocks) == allocated
        # the embedding has one profile, the decoder one for the prompt and one for the tokens after it
        assert [profile for _, profile in fake.library.calls] == [0] + [0, 1] * 11
        copied = {kind: [size for x, size in fake.cuda.copied if x == kind] for kind in fake_cuda.CopyKind}
        assert not copied[fake_cuda.CopyKind.cudaMemcpyDeviceToDevice]
        assert copied[fake_cuda.CopyKind.cudaMemcpyDeviceToHost] == 12 * down_each
        # embeddings, mask and positions of the prompt
        assert copied[fake_cuda.CopyKind.cudaMemcpyHostToDevice][3:] == 11 * up_each


def test_engines_are_verified_like_any_backend(folder: Path, fake: SimpleNamespace) -> None:
    found = verify_bundle(open_bundle(folder), graph_loader(RTX), arithmetic_of("fp32", RTX))
    assert found.verified
    assert found.arithmetic == "fp32"
    (tokens,) = (check for check in found.checks if check.output == "tokens")
    assert isinstance(tokens, Agreement)
    assert tokens.total >= len(found.images)


def test_all_memory_is_given_back(folder: Path, fake: SimpleNamespace, photos: dict[str, Path]) -> None:
    pipeline = Pipeline.load(folder, backend=RTX)
    for _ in range(2):
        pipeline.generate(photos["cat"], QUESTION, max_new_tokens=3)
    assert fake.cuda.blocks
    del pipeline
    assert not fake.cuda.blocks
    assert fake.cuda.streams == 0


@pytest.mark.parametrize("capturable", [True, False])
def test_the_vision_engine_is_a_cuda_graph_where_that_works(
    capturable: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, photos: dict[str, Path]
) -> None:
    fake = fake_engine.install(monkeypatch, capturable=capturable)
    pipeline, measure = Pipeline.load(folder, backend=RTX), Pipeline.load(folder)
    for name in ("cat", "rocket", "coffee"):
        found, expected = (x.encode(photos[name], QUESTION) for x in (pipeline, measure))
        np.testing.assert_array_equal(found.features, expected.features)
    assert fake.cuda.calls.count("cudaStreamBeginCapture") == 1
    assert fake.cuda.calls.count("cudaGraphLaunch") == (2 if capturable else 0)
    assert fake.cuda.calls.count("cudaGetLastError") == (0 if capturable else 1)


@pytest.fixture
def ranged_bundle(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A bundle in FP16 whose K is chosen at run time; made before `fake` hides the real builder."""
    config = ExportConfig(
        model=str(tiny_checkpoint("llama")),
        out=tmp_path / "range",
        keep=Fraction("0.3"),
        keep_range=(Fraction("0.1"), Fraction(1)),
        instruction="none",
        precision="fp16",
        max_prompt=32,
    )
    export(config)
    return config.out


def test_a_k_at_run_time_and_float16(ranged_bundle: Path, fake: SimpleNamespace, photos: dict[str, Path]) -> None:
    """K is a value that TensorRT reads on the host, and the shapes that follow from it are no CUDA graph's."""
    fake_engine.write_engines(ranged_bundle)
    pipeline, measure = Pipeline.load(ranged_bundle, backend=RTX), Pipeline.load(ranged_bundle)
    for keep in ("0.1", "1", None, "1/3"):
        found, expected = (x.encode(photos["cat"], QUESTION, keep=keep) for x in (pipeline, measure))
        assert found.features.dtype == np.float16
        np.testing.assert_array_equal(found.features, expected.features)
    assert "cudaStreamBeginCapture" not in fake.cuda.calls
    found, expected = (x.generate(photos["cat"], QUESTION, keep="1", max_new_tokens=5) for x in (pipeline, measure))
    assert found == expected


def test_a_context_that_the_cache_has_no_room_for_is_refused_at_once(
    folder: Path, fake: SimpleNamespace, photos: dict[str, Path]
) -> None:
    never_ends(folder)
    pipeline = Pipeline.load(folder, backend=RTX)
    visual = pipeline.encode(photos["cat"], QUESTION)
    length = visual.count + len(pipeline._encoder.prompter(QUESTION).ids)
    room = 300 - length + 1  # the last token is not fed
    with pytest.raises(PromptError, match=rf"got {length} tokens and {room + 1} new ones; expected at most 300 tokens"):
        pipeline.stream(photos["cat"], QUESTION, max_new_tokens=room + 1)
    with pytest.raises(PromptError, match=r"build the engine with a larger --max-context"):
        pipeline.stream_from(visual, QUESTION, max_new_tokens=room + 9)
    stream = pipeline.stream_from(visual, QUESTION, max_new_tokens=room)
    assert len(stream.answer().token_ids) == room


def test_shapes_outside_of_all_profiles_are_refused(folder: Path, fake: SimpleNamespace) -> None:
    bundle = open_bundle(folder)
    decoder = Pipeline.load(folder, backend=RTX)._decoder
    model = bundle.manifest.language_model
    past = np.zeros((1, model.num_kv_heads, 4, model.head_dim), np.float32)
    values = {
        "inputs_embeds": np.zeros((1, 2, model.hidden_size), np.float32),
        "attention_mask": np.ones((1, 6), np.int64),
        "position_ids": np.arange(4, 6)[None],
    } | dict.fromkeys(decoder.past_names.values(), past)
    with pytest.raises(BackendError, match=r"no profile for these shapes; got inputs_embeds \[1, 2, .*ptp build"):
        decoder.graph.run(values)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"builder": "1.6.0.1"}, "version of tensorrt-rtx 1.6.0.1 instead of 1.7.1.116"),
        ({"compute_capability": [8, 9]}, "compute capability 8.9 instead of 8.6"),
        ({"target": "sm89"}, "target sm89 instead of sm86"),
        ({"kind": "visual"}, "kind visual instead of llm"),
        ({"backend": "tensorrt"}, "backend tensorrt instead of tensorrt-rtx"),
        ({"precision": "fp16"}, "precision fp16 instead of fp32"),
        ({"graph_files": {}}, r"no hash of onnx/decoder_model_merged\.onnx"),
        (
            {"graph_files": {"onnx/decoder_model_merged.onnx": {"bytes": 1, "sha256": "0" * 64}}},
            r"built from another onnx/decoder_model_merged\.onnx",
        ),
    ],
)
def test_a_fingerprint_of_something_else_is_refused(
    changes: dict[str, Any], problem: str, folder: Path, fake: SimpleNamespace
) -> None:
    rewrite(config_of(folder), **changes)
    with pytest.raises(
        BackendError, match=rf"the engine in .*sm86/llm does not fit; .*{problem}.*; build .*: ptp build "
    ) as got:
        Pipeline.load(folder, backend=RTX, target="sm86")
    command = f"ptp build {folder} --backend tensorrt-rtx"
    if "compute_capability" in changes:  # the same engine again would be refused again
        assert str(got.value).endswith(f"build one for this GPU: {command}")
    else:
        assert str(got.value).endswith(f"build it again: {command} --target sm86 --max-context 300 --force")
    assert not fake.library.calls


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text(path.read_text() + " "), "was altered; got .* bytes"),
        (lambda path: path.write_text(path.read_text().replace('"onnx"', '"onny"')), "was altered; got SHA-256"),
        (
            lambda path: path.symlink_to(shutil.move(path, path.parents[5] / "out.engine")),
            "is a link out of the bundle",
        ),
    ],
)
def test_an_engine_that_was_altered_is_refused(
    spoil: Callable[[Path], Any], problem: str, folder: Path, fake: SimpleNamespace
) -> None:
    spoil(config_of(folder).with_name("llm.engine"))
    with pytest.raises(IntegrityError, match=rf"llm\.engine {problem}.*ptp build .* --target sm86"):
        Pipeline.load(folder, backend=RTX)


def test_the_engine_of_the_devices_compute_capability_is_taken(
    copied_bundle: Path, fake: SimpleNamespace, photos: dict[str, Path]
) -> None:
    with pytest.raises(
        BackendError, match=r"has no embed engine for tensorrt-rtx; build it: ptp build .*copy --backend"
    ):
        Pipeline.load(copied_bundle, backend=RTX)
    for target, capability in (("sm89", [8, 9]), ("sm120", [12, 0])):
        fake_engine.write_engines(copied_bundle, target=target)
        for kind in KINDS:
            rewrite(config_of(copied_bundle, kind, target), compute_capability=capability)
    there = r"got sm120 of compute capability 12\.0, sm89 of compute capability 8\.9"
    with pytest.raises(BackendError, match=rf"{there}; expected 8\.6, that of NVIDIA fake"):
        Pipeline.load(copied_bundle, backend=RTX)
    with pytest.raises(ConfigError, match="no embed engine for target 'sm86'; expected sm120 or sm89"):
        Pipeline.load(copied_bundle, backend=RTX, target="sm86")
    fake_engine.write_engines(copied_bundle)
    Pipeline.load(copied_bundle, backend=RTX)
    fake_engine.write_engines(copied_bundle, target="other")
    with pytest.raises(ConfigError, match="several engines fit this GPU; got other, sm86; choose one with --target"):
        Pipeline.load(copied_bundle, backend=RTX)
    Pipeline.load(copied_bundle, backend=RTX, target="other")


def test_what_is_still_being_built_is_no_engine(copied_bundle: Path, fake: SimpleNamespace) -> None:
    """`ptp build` writes into a folder with a dot, and renames it at the end."""
    fake_engine.write_engines(copied_bundle)
    fake_engine.write_engines(copied_bundle, target=".sm86.1234.partial")
    assert [config.target for config in read_engines(copied_bundle)] == ["sm86"] * 3
    Pipeline.load(copied_bundle, backend=RTX)


def test_engines_without_a_fingerprint_are_built_with_force(copied_bundle: Path, fake: SimpleNamespace) -> None:
    """As the bundle's own build.sh leaves them."""
    for kind in KINDS:
        engine_folder(copied_bundle, RTX, "sm86", kind).mkdir(parents=True)
    with pytest.raises(BackendError, match=r"has no embed engine .*--backend tensorrt-rtx --force$"):
        Pipeline.load(copied_bundle, backend=RTX)


def test_a_version_compatible_engine_may_bring_its_own_code(folder: Path, fake: SimpleNamespace) -> None:
    for kind in KINDS:
        path = config_of(folder, kind)
        engine = path.with_name(f"{kind}.engine")
        engine.write_text(json.dumps(json.loads(engine.read_text()) | {"needs_host_code": True}))
        rewrite(path, engine=fake_engine.file_entry(engine).model_dump())
    with pytest.raises(BackendError, match=r"cannot load .*embed\.engine; got Host code is not allowed"):
        Pipeline.load(folder, backend=RTX)
    for kind in KINDS:
        rewrite(config_of(folder, kind), flags={"VERSION_COMPATIBLE": True})
    Pipeline.load(folder, backend=RTX)


def test_a_cuda_graph_that_cannot_be_made_is_done_without(
    folder: Path, fake: SimpleNamespace, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = (fake_cuda.Error.cudaErrorMemoryAllocation, None)
    monkeypatch.setattr(fake.cuda, "cudaGraphInstantiate", lambda graph, flags: failed, raising=False)
    pipeline, measure = Pipeline.load(folder, backend=RTX), Pipeline.load(folder)
    for name in ("cat", "rocket", "coffee"):
        found, expected = (x.encode(photos[name], QUESTION) for x in (pipeline, measure))
        np.testing.assert_array_equal(found.features, expected.features)
    assert fake.cuda.calls.count("cudaGraphLaunch") == 0
    assert fake.cuda.calls.count("cudaGetLastError") == 1


def replace_engine(folder: Path, **changes: Any) -> None:
    """Replace the decoder's engine by another, with a fingerprint that knows of it."""
    path = config_of(folder).with_name("llm.engine")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes) if changes else "no engine")
    rewrite(config_of(folder), engine=fake_engine.file_entry(path).model_dump())


def test_what_an_engine_says_of_itself_is_compared(folder: Path, fake: SimpleNamespace) -> None:
    config = json.loads(config_of(folder).read_text())
    rewrite(config_of(folder), inputs=config["inputs"][1:])
    with pytest.raises(
        BackendError, match=r"inputs of .*llm\.engine are not those of its config\.json; got inputs_embeds"
    ):
        Pipeline.load(folder, backend=RTX)
    rewrite(config_of(folder), inputs=config["inputs"], profiles=config["profiles"][:1])
    with pytest.raises(BackendError, match=r"has other profiles than its config\.json; got 2; expected 1"):
        Pipeline.load(folder, backend=RTX)
    profiles = json.loads(json.dumps(config["profiles"]))
    del profiles[1]["shapes"]["attention_mask"]
    rewrite(config_of(folder), profiles=profiles)
    with pytest.raises(BackendError, match=r"profile decode .* got no range of attention_mask"):
        Pipeline.load(folder, backend=RTX)
    rewrite(config_of(folder), profiles=config["profiles"])
    replace_engine(folder, onnx=str((folder / "onnx/embed_tokens.onnx").absolute()))
    with pytest.raises(
        BackendError, match=r"inputs of .*llm\.engine are not those of its config\.json; .*input_ids extra"
    ):
        Pipeline.load(folder, backend=RTX)
    replace_engine(folder)
    with pytest.raises(
        BackendError, match=r"cannot load .*; got The engine plan file is not compatible; build it again"
    ):
        Pipeline.load(folder, backend=RTX)


def test_a_device_without_room_says_so_when_the_engine_is_loaded(folder: Path, fake: SimpleNamespace) -> None:
    fake.cuda.capacity = 100_000
    with pytest.raises(BackendError, match="cudaMalloc failed; got cudaErrorMemoryAllocation"):
        Pipeline.load(folder, backend=RTX)


def test_the_fake_refuses_misuse(folder: Path, fake: SimpleNamespace) -> None:
    """Else the tests above could not fail."""
    graph = graph_loader(RTX)(open_bundle(folder), open_bundle(folder).manifest.graphs.decoder_model_merged)
    context = graph._engine.create_execution_context(  # type: ignore[attr-defined]
        tensorrt_rtx.ExecutionContextAllocationStrategy.STATIC
    )
    with pytest.raises(AssertionError, match="before a profile"):
        context.set_input_shape("attention_mask", (1, 4))
    assert context.set_optimization_profile_async(1, 7)
    assert context.set_input_shape("attention_mask", (1, 4))
    assert not context.set_input_shape("attention_mask", (1, 1))
    assert not context.execute_async_v3(7)
    with pytest.raises(AssertionError, match="not device memory"):
        fake.cuda.at(next(iter(fake.cuda.blocks)) - 1, 4)
