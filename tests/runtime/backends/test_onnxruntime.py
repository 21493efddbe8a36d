"""The ONNX Runtime backend: runs, keeps tensors, and refuses what differs from the manifest."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptp.bundle import open_bundle
from ptp.bundle.manifest import GraphSpec, TensorSpec
from ptp.errors import BackendError, ConfigError
from ptp.runtime.backends import onnxruntime as backend
from ptp.runtime.backends.base import CPU_PREFILL_CHUNK
from ptp.runtime.backends.onnxruntime import OnnxRuntimeGraph
from ptp.runtime.backends.openvino import OpenVinoGraph

SPEC = GraphSpec(
    file="onnx/add.onnx",
    inputs=(
        TensorSpec(name="past", dtype="float32", shape=(1, "past_length", 4)),
        TensorSpec(name="new", dtype="float32", shape=(1, "length", 4)),
    ),
    outputs=(
        TensorSpec(name="present", dtype="float32", shape=(1, "total_length", 4)),
        TensorSpec(name="size", dtype="int64", shape=(1,)),
    ),
)


def write_graph(path: Path) -> Path:
    """Write a graph that appends `new` to `past`, as a key/value cache does."""
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["past", "new"], ["present"], axis=1),
            helper.make_node("Shape", ["present"], ["size"], start=1, end=2),
        ],
        "append",
        [
            helper.make_tensor_value_info("past", TensorProto.FLOAT, [1, "p", 4]),
            helper.make_tensor_value_info("new", TensorProto.FLOAT, [1, "n", 4]),
        ],
        [
            helper.make_tensor_value_info("present", TensorProto.FLOAT, [1, "t", 4]),
            helper.make_tensor_value_info("size", TensorProto.INT64, [1]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntimeGraph:
    return OnnxRuntimeGraph(write_graph(tmp_path_factory.mktemp("graph") / "add.onnx"), SPEC, threads=1)


def rows(count: int, value: float = 1.0) -> np.ndarray:
    return np.full((1, count, 4), value, np.float32)


def test_runs_on_numpy_arrays(graph: OnnxRuntimeGraph) -> None:
    outputs = graph.run({"past": rows(0), "new": rows(3)})
    assert outputs["size"].numpy().tolist() == [3]
    np.testing.assert_array_equal(outputs["present"].numpy(), rows(3))


def test_arrays_of_any_layout_are_fed(graph: OnnxRuntimeGraph) -> None:
    new = np.arange(8, dtype=np.float32).reshape(4, 2).T[None]
    np.testing.assert_array_equal(graph.run({"past": rows(0), "new": new})["present"].numpy(), new)


def test_outputs_go_back_in_without_a_copy(graph: OnnxRuntimeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    first = graph.run({"past": rows(0), "new": rows(2, 1.0)})["present"]
    made: list[np.ndarray] = []
    convert = ort.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda value: made.append(value) or convert(value))
    monkeypatch.setattr(ort.OrtValue, "numpy", lambda _: pytest.fail("copied to numpy"))
    second = graph.run({"past": first, "new": rows(1, 2.0)})
    assert [x.shape for x in made] == [(1, 1, 4)]
    monkeypatch.undo()
    np.testing.assert_array_equal(second["present"].numpy(), np.concatenate([rows(2, 1.0), rows(1, 2.0)], axis=1))
    np.testing.assert_array_equal(first.numpy(), rows(2, 1.0))


def test_threads_do_not_meet(graph: OnnxRuntimeGraph) -> None:
    def chain(value: int) -> np.ndarray:
        present = rows(0)
        for _ in range(20):
            present = graph.run({"past": present, "new": rows(1, value)})["present"]
        return present.numpy()

    with ThreadPoolExecutor(4) as pool:
        for value, result in enumerate(pool.map(chain, range(8))):
            np.testing.assert_array_equal(result, rows(20, value))


def test_a_value_that_does_not_fit_is_an_error(graph: OnnxRuntimeGraph) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        graph.run({"past": rows(0), "new": np.zeros((1, 2, 5), np.float32)})
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        graph.run({"past": rows(0)})
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        graph.run({"past": rows(0), "new": rows(1), "more": rows(1)})


def changed(**updates: object) -> TensorSpec:
    return SPEC.inputs[1].model_copy(update=updates)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ((SPEC.inputs[0], changed(name="old")), "old missing, new extra"),
        ((SPEC.inputs[0], changed(dtype="float16")), r"new is float32 \[1, \?, 4\] instead of float16 \[1, \?, 4\]"),
        ((SPEC.inputs[0], changed(shape=(1, "n", 5))), r"new is .*instead of float32 \[1, \?, 5\]"),
        ((SPEC.inputs[0], changed(shape=(1, 7, 4))), r"new is .*instead of float32 \[1, 7, 4\]"),
        ((SPEC.inputs[0], changed(shape=("batch", "n", 4))), r"new is .*instead of float32 \[\?, \?, 4\]"),
        ((SPEC.inputs[0], changed(shape=(1, 4))), r"new is .*instead of float32 \[1, 4\]"),
        (SPEC.inputs[:1], "new extra"),
    ],
)
def test_graphs_that_differ_from_the_manifest_are_refused(
    inputs: tuple[TensorSpec, ...], problem: str, tmp_path: Path
) -> None:
    path = write_graph(tmp_path / "add.onnx")
    with pytest.raises(BackendError, match=f"inputs of .* are not those of the manifest; got {problem}"):
        OnnxRuntimeGraph(path, SPEC.model_copy(update={"inputs": inputs}))


def test_outputs_are_compared_too(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "add.onnx")
    with pytest.raises(BackendError, match=r"outputs of .*got size extra"):
        OnnxRuntimeGraph(path, SPEC.model_copy(update={"outputs": SPEC.outputs[:1]}))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "add.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BackendError, match="cannot load"):
        OnnxRuntimeGraph(path, SPEC)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(rows(1).tobytes())
    folder = tmp_path / "bundle"
    folder.mkdir()
    model = onnx.load(write_graph(folder / "add.onnx"))
    weight = numpy_helper.from_array(rows(1), "past")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    model.graph.initializer.append(weight)
    del model.graph.input[0]
    (folder / "add.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match="cannot load"):
        OnnxRuntimeGraph(folder / "add.onnx", SPEC.model_copy(update={"inputs": SPEC.inputs[1:]}))


def test_the_cpu_takes_prompts_in_pieces_and_cuda_whole(
    graph: OnnxRuntimeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert graph.prefill_chunk == OpenVinoGraph.prefill_chunk == CPU_PREFILL_CHUNK
    session = SimpleNamespace(
        disable_fallback=lambda: None,
        get_providers=lambda: ["CUDAExecutionProvider"],
        get_inputs=list,
        get_outputs=list,
    )
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(backend.PROVIDERS.values()))
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: session)
    spec = SPEC.model_copy(update={"inputs": (), "outputs": ()})
    assert OnnxRuntimeGraph(tmp_path, spec, provider="cuda").prefill_chunk is None


def test_unknown_and_unavailable_providers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_graph(tmp_path / "add.onnx")
    with pytest.raises(ConfigError, match="got 'gpu'; expected cpu or cuda or tensorrt or nvtensorrtrtx"):
        OnnxRuntimeGraph(path, SPEC, provider="gpu")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"cuda is not available.*got cpu"):
        OnnxRuntimeGraph(path, SPEC, provider="cuda")


def test_tensorrt_leaves_what_changes_its_shape_to_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_graph(tmp_path / "add.onnx")
    asked: list[list[tuple[str, dict[str, str]]]] = []
    real = ort.InferenceSession

    def start(path: Path, options: ort.SessionOptions, providers: list[tuple[str, dict[str, str]]]) -> object:
        asked.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: list(backend.PROVIDERS.values()))
    monkeypatch.setattr(ort, "InferenceSession", start)
    inputs = (TensorSpec(name="new", dtype="float32", shape=(1, 2, 4)),)
    chosen = SPEC.model_copy(update={"inputs": inputs})  # a K that is an input's value leaves an output open
    fixed = chosen.model_copy(update={"outputs": inputs})
    for spec in (SPEC, chosen, fixed):
        with pytest.raises(BackendError, match="could not start"):
            OnnxRuntimeGraph(path, spec, provider="tensorrt")
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert asked == [[cuda], [cuda], [("TensorrtExecutionProvider", {}), cuda]]
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    with pytest.raises(BackendError, match="cuda is not available"):
        OnnxRuntimeGraph(path, SPEC, provider="tensorrt")


def test_a_silent_fallback_to_the_cpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_graph(tmp_path / "add.onnx")
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(backend.PROVIDERS.values()))
    monkeypatch.setattr(ort, "InferenceSession", lambda *args, **_: real(*args, providers=["CPUExecutionProvider"]))
    with pytest.raises(BackendError, match="could not start CUDAExecutionProvider; got CPUExecutionProvider"):
        OnnxRuntimeGraph(path, SPEC, provider="cuda")


@pytest.mark.parametrize(("provider", "file"), [("cpu", "vision_encoder_onnxruntime"), ("cuda", "vision_encoder")])
def test_the_cpu_runs_the_vision_graph_made_for_it(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, provider: str, file: str
) -> None:
    bundle = open_bundle(demo_bundle)
    vision = bundle.manifest.graphs.vision_encoder
    twin = vision.model_copy(update={"file": "onnx/vision_encoder_onnxruntime.onnx"})
    graphs = bundle.manifest.graphs.model_copy(update={"vision_encoder_onnxruntime": twin})
    files = bundle.manifest.files | {twin.file: bundle.manifest.files[vision.file]}
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": graphs, "files": files}))
    loaded: list[Path] = []
    monkeypatch.setattr(backend, "available_provider", lambda provider: provider)
    monkeypatch.setattr(backend, "OnnxRuntimeGraph", lambda path, *_, **__: loaded.append(path))
    backend.loader(provider, threads=1)(bundle, vision)
    assert [path.stem for path in loaded] == [file]


@pytest.mark.parametrize(
    ("provider", "precision", "file"),
    [
        ("cpu", "fp32", "decoder_onnxruntime"),
        ("cuda", "fp32", "decoder_model_merged"),
        ("cuda", "fp16", "decoder_onnxruntime"),
        ("tensorrt", "fp16", "decoder_model_merged"),
    ],
)
def test_the_decoder_in_place_runs_where_its_operator_does(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, provider: str, precision: str, file: str
) -> None:
    bundle = open_bundle(demo_bundle)
    decoder = bundle.manifest.graphs.decoder_model_merged
    fused = decoder.model_copy(update={"file": "onnx/decoder_onnxruntime.onnx"})
    graphs = bundle.manifest.graphs.model_copy(update={"decoder_onnxruntime": fused})
    files = bundle.manifest.files | {fused.file: bundle.manifest.files[decoder.file]}
    model = bundle.manifest.model.model_copy(update={"precision": precision})
    changes = {"graphs": graphs, "files": files, "model": model}
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update=changes))
    loaded: list[Path] = []
    monkeypatch.setattr(backend, "available_provider", lambda provider: provider)
    for name in ("OnnxRuntimeGraph", "InPlaceDecoder"):
        monkeypatch.setattr(backend, name, lambda path, *_, **__: loaded.append(path))
    backend.loader(provider, threads=1)(bundle, decoder)
    assert [path.stem for path in loaded] == [file]


def test_cudas_libraries_are_looked_for_where_pip_puts_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked: list[str] = []

    def preload() -> None:
        looked.append("once")
        print("Failed to load libcublas.so.13")

    monkeypatch.setattr(ort, "preload_dlls", preload)
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(backend.PROVIDERS.values()))
    backend.loader("cpu", threads=1)
    assert looked == []
    backend.loader("cuda", threads=1)
    assert looked == ["once"]
    assert capsys.readouterr() == ("", "")
