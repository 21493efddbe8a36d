"""What every backend must do alike, on each that this machine can run; ONNX Runtime on the CPU is the measure.

The engine backends run over `fake_engine`; on real hardware under the mark `gpu`.
"""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import fake_engine
import numpy as np
import onnxruntime as ort
import pytest
from fused import add_fused_decoder

from ptp import Pipeline
from ptp.bundle import Bundle, open_bundle
from ptp.demo import CHECKPOINT
from ptp.errors import BackendError
from ptp.export.config import ExportConfig
from ptp.export.pipeline import export
from ptp.runtime.backends.base import Array, Graph
from ptp.runtime.backends.onnxruntime import InPlaceDecoder
from ptp.runtime.backends.registry import graph_loader
from ptp.runtime.decoding import Decoder
from ptp.runtime.verify import verify_bundle
from ptp.tolerances import FEATURES, SCORES, row_difference, value_difference

BACKENDS = [
    "onnxruntime",
    "fused onnxruntime",
    "openvino",
    "fake tensorrt-rtx",
    "fake tensorrt",
    pytest.param("cuda onnxruntime", marks=pytest.mark.gpu),
    pytest.param("tensorrt-rtx", marks=pytest.mark.gpu),
    pytest.param("tensorrt", marks=pytest.mark.gpu),
]
QUESTIONS = ("What is in the picture?", "Where is the circle?", "What does it say?")


@pytest.fixture(scope="module")
def bundle_folder(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo bundle, with engines that the fakes run."""
    folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("engines") / "demo"))
    fake_engine.write_engines(folder, "tensorrt-rtx", "sm86")
    fake_engine.write_engines(folder, "tensorrt", "orin-nano")
    return folder


@pytest.fixture(scope="module")
def fused_folder(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo bundle, with the decoder for ONNX Runtime alone."""
    folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("fused") / "demo"))
    add_fused_decoder(folder, str(CHECKPOINT))
    return folder


@pytest.fixture(scope="module")
def real_engines(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a copy of the demo bundle, with engines for the GPU of this machine."""

    def build(backend: str) -> Path:
        from ptp.cli import main

        folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp(backend) / "demo"))
        with pytest.raises(SystemExit) as end:
            main(["build", str(folder), "--backend", backend])
        assert not end.value.code
        return folder

    return build


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, bundle_folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A bundle's folder, and what names the backend to run it on."""
    name: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        if name.startswith("fake "):
            name = name.removeprefix("fake ")
            fake_engine.install(patch, name)  # type: ignore[arg-type]
            yield bundle_folder, {"backend": name}
        elif name.startswith("fused "):
            yield request.getfixturevalue("fused_folder"), {"backend": name.removeprefix("fused "), "threads": 1}
        elif name.startswith("cuda "):
            yield bundle_folder, {"backend": name.removeprefix("cuda "), "provider": "cuda"}
        elif name.startswith("tensorrt"):
            yield request.getfixturevalue("real_engines")(name), {"backend": name}
        else:
            yield bundle_folder, {"backend": name, "threads": 1}


@pytest.fixture(scope="module")
def pipeline(backend: tuple[Path, dict[str, Any]]) -> Pipeline:
    folder, options = backend
    return Pipeline.load(folder, **options)


@pytest.fixture(scope="module")
def measure(bundle_folder: Path) -> Pipeline:
    return Pipeline.load(bundle_folder, threads=1)


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder)


@pytest.fixture(scope="module")
def decoder(pipeline: Pipeline) -> Decoder:
    return pipeline._decoder


@pytest.fixture(scope="module")
def graph(decoder: Decoder) -> Graph:
    return decoder.graph


def embeds(decoder: Decoder, count: int, seed: int) -> Array:
    """Return rows like those of an embedding table."""
    hidden = decoder.model.hidden_size
    return np.random.default_rng(seed).normal(0, 0.05, (count, hidden)).astype(np.float32)


def feeds(decoder: Decoder, count: int, past: dict[str, Any] | None = None, length: int = 0) -> dict[str, Any]:
    """Return the inputs of a decoder's step on `count` new tokens after `length`."""
    model = decoder.model
    empty = np.zeros((1, model.num_kv_heads, 0, model.head_dim), np.float32)
    return {
        "inputs_embeds": embeds(decoder, count, 1)[None],
        "attention_mask": np.ones((1, length + count), np.int64),
        "position_ids": np.arange(length, length + count)[None],
        **(past or dict.fromkeys(decoder.past_names.values(), empty)),
    }


def test_the_vision_graph_computes_the_same(pipeline: Pipeline, measure: Pipeline, photos: dict[str, Path]) -> None:
    for photo in ("cat", "rocket", "cat"):  # an engine's third run is the second from a CUDA graph
        found, expected = (x.encode(photos[photo], QUESTIONS[0]) for x in (pipeline, measure))
        np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_array_equal(found.tile_budgets, expected.tile_budgets)
        assert found.packed_length == expected.packed_length
        assert row_difference(found.features, expected.features) < FEATURES["fp32"]


def test_the_decoder_computes_the_same(decoder: Decoder, measure: Pipeline) -> None:
    """A prefill with an empty cache, then steps that are fed what came back."""
    one, other = decoder.begin(), measure._decoder.begin()
    rows, positions = embeds(decoder, 20, 0), np.arange(20)
    found, expected = one.prefill(rows, positions), other.prefill(rows, positions)
    for token in (7, 300, 41, None):
        assert value_difference(found.logits, expected.logits) < SCORES["fp32"]
        assert found.token == expected.token == expected.logits.argmax()
        tokens = found.tokens if token is None else np.array([[token]])
        found, expected = one.append(tokens), other.append(tokens if token else expected.tokens)
    assert value_difference(found.logits, expected.logits) < SCORES["fp32"]


def test_greedy_tokens_are_the_same(pipeline: Pipeline, measure: Pipeline, photos: dict[str, Path]) -> None:
    images = [*photos.values(), *sorted((CHECKPOINT / "evaluation").glob("*.jpg"))]
    pairs = [(image, QUESTIONS[i % len(QUESTIONS)]) for i, image in enumerate(images)]
    found, expected = (
        [x.answer().token_ids for x in one.stream_batch(pairs, max_new_tokens=16)] for one in (pipeline, measure)
    )
    assert found == expected
    assert len(set(expected)) > 1


def test_outputs_outlive_the_next_run(decoder: Decoder, graph: Graph, pipeline: Pipeline) -> None:
    first = graph.run(feeds(decoder, 5))
    before = {name: value.numpy().copy() for name, value in first.items()}
    past = {name: first[present] for present, name in decoder.past_names.items()}
    graph.run(feeds(decoder, 1, past, 5))
    graph.run(feeds(decoder, 9))
    for name, value in first.items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    vision = pipeline._encoder._vision
    rng = np.random.default_rng(0)
    values = {
        spec.name: rng.integers(1, 2, spec.shape) if "int" in spec.dtype else rng.random(spec.shape)
        for spec in vision.inputs
    } | {"image_sizes": np.array([[60, 80]])}
    typed = {spec.name: values[spec.name].astype(spec.dtype) for spec in vision.inputs}
    features = vision.run(typed)["image_features"]
    kept = features.numpy().copy()
    vision.run(typed | {"pixel_values": -typed["pixel_values"]})
    np.testing.assert_array_equal(features.numpy(), kept)


def test_arrays_may_change_after_the_run(decoder: Decoder, graph: Graph) -> None:
    inputs = feeds(decoder, 5)
    outputs = graph.run(inputs)
    expected = outputs["logits"].numpy().copy()
    for value in inputs.values():
        value[...] = 0
    np.testing.assert_array_equal(outputs["logits"].numpy(), expected)


def test_arrays_of_any_layout_are_fed(decoder: Decoder, graph: Graph) -> None:
    inputs = feeds(decoder, 5)
    expected = graph.run(inputs)["logits"].numpy()
    turned = np.ascontiguousarray(inputs["inputs_embeds"].T).T
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(graph.run(inputs | {"inputs_embeds": turned})["logits"].numpy(), expected)


def test_threads_do_not_meet(pipeline: Pipeline, photos: dict[str, Path]) -> None:
    def answer(name: str) -> tuple[int, ...]:
        return pipeline.generate(photos[name], QUESTIONS[0], max_new_tokens=6).token_ids

    expected = {name: answer(name) for name in photos}
    names = [*photos, *photos]
    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(names, pool.map(answer, names), strict=True):
            assert found == expected[name]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda x: x.pop("position_ids"), "position_ids"),
        (lambda x: x.update(more=np.zeros(1, np.float32)), "more"),
        (lambda x: x.update(inputs_embeds=x["inputs_embeds"].astype(np.float64)), "inputs_embeds|double"),
        (lambda x: x.update(inputs_embeds=x["inputs_embeds"][..., :-1]), "inputs_embeds"),
        (lambda x: x.update(inputs_embeds=x["inputs_embeds"][0]), "inputs_embeds"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    spoil: Callable[[dict[str, Any]], Any], problem: str, decoder: Decoder, graph: Graph
) -> None:
    inputs = feeds(decoder, 5)
    spoil(inputs)
    with pytest.raises(BackendError, match=problem):
        graph.run(inputs)
    graph.run(feeds(decoder, 5))  # and nothing is broken


def test_graphs_that_differ_from_the_manifest_are_refused(backend: tuple[Path, dict[str, Any]], bundle: Bundle) -> None:
    load = graph_loader(**backend[1])
    spec = bundle.manifest.graphs.embed_tokens
    other = spec.model_copy(update={"outputs": (spec.outputs[0].model_copy(update={"dtype": "float16"}),)})
    graphs = bundle.manifest.graphs.model_copy(update={"embed_tokens": other})
    changed = Bundle(folder=bundle.folder, manifest=bundle.manifest.model_copy(update={"graphs": graphs}))
    with pytest.raises(BackendError, match=r"outputs of .* are not those of the manifest.* instead of float16"):
        load(changed, other)
    spec = bundle.manifest.graphs.decoder_model_merged
    fewer = spec.model_copy(update={"outputs": spec.outputs[:-1]})
    graphs = bundle.manifest.graphs.model_copy(update={"decoder_model_merged": fewer})
    changed = Bundle(folder=backend[0], manifest=bundle.manifest.model_copy(update={"graphs": graphs}))
    with pytest.raises(BackendError, match=r"outputs of .*got present\.\d+\.value extra"):
        load(changed, fewer)


@pytest.mark.gpu
def test_cuda_runs_the_decoder_in_place_in_fp16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values stay in buffers on the GPU, whose free rows may hold anything; the answers are transformers'."""
    config = ExportConfig(
        model=str(CHECKPOINT), out=tmp_path / "b", keep=Fraction(1, 4), precision="fp16", optimize="onnxruntime"
    )
    bundle = export(config)
    load_graph = graph_loader(provider="cuda")
    assert isinstance(load_graph(bundle, bundle.manifest.graphs.decoder_model_merged), InPlaceDecoder)
    verify_bundle(bundle, load_graph, "fp16").require()

    def anything(shape: tuple[int, ...], dtype: Any, device: str) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.full(shape, np.nan, dtype), device)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", anything)
    verify_bundle(bundle, load_graph, "fp16").require()
