"""What is OpenVINO's own; what all backends have in common is in `test_contract`."""

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptp.bundle import open_bundle
from ptp.bundle.manifest import GraphSpec, TensorSpec
from ptp.errors import BackendError
from ptp.runtime.backends.openvino import OpenVinoGraph
from ptp.runtime.backends.registry import graph_loader

SPEC = GraphSpec(
    file="onnx/last.onnx",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, "rows", 4)),),
    outputs=(TensorSpec(name="last", dtype="float32", shape=(1, 1, 4)),),
)


def write_graph(path: Path, rows: int = 1) -> Path:
    """Write a graph that returns the last rows of its input: OpenVINO infers at most `rows`, the file says `rows`."""
    bounds = [
        numpy_helper.from_array(np.array([x]), name) for name, x in (("start", -rows), ("end", 1 << 40), ("axis", 1))
    ]
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "start", "end", "axis"], ["last"])],
        "last",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "rows", 4])],
        [helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, rows, 4])],
        initializer=bounds,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_an_output_that_is_known_at_run_time_only_is_compared_then(tmp_path: Path) -> None:
    graph = OpenVinoGraph(write_graph(tmp_path / "last.onnx"), SPEC)
    assert graph.outputs == SPEC.outputs
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    np.testing.assert_array_equal(graph.run({"x": x})["last"].numpy(), x[:, -1:])
    with pytest.raises(BackendError, match=r"another shape of last; got \(1, 0, 4\)"):
        graph.run({"x": x[:, :0]})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "last.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BackendError, match="OpenVINO cannot load"):
        OpenVinoGraph(path, SPEC)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(np.ones(4, np.float32).tobytes())
    folder = tmp_path / "bundle"
    folder.mkdir()
    model = onnx.load(write_graph(folder / "last.onnx"))
    weight = numpy_helper.from_array(np.ones((1, 1, 4), np.float32), "x")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    model.graph.initializer.append(weight)
    del model.graph.input[0]
    (folder / "last.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match="cannot load"):
        OpenVinoGraph(folder / "last.onnx", SPEC.model_copy(update={"inputs": ()}))


def test_it_computes_in_float32_unless_asked_otherwise(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    compile_model = ov.Core.compile_model
    monkeypatch.setattr(
        ov.Core,
        "compile_model",
        lambda core, model, device, settings: (asked.append(settings), compile_model(core, model, device, settings))[1],
    )
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "BF16"])
    bundle = open_bundle(demo_bundle)
    spec = bundle.manifest.graphs.embed_tokens
    graph_loader("openvino", threads=1)(bundle, spec)
    graph_loader("openvino", precision="bf16")(bundle, spec)
    assert [x["INFERENCE_PRECISION_HINT"] for x in asked] == ["f32", "bf16"]
    assert [x["DYNAMIC_QUANTIZATION_GROUP_SIZE"] for x in asked] == ["0", "0"]
    assert [x.get("INFERENCE_NUM_THREADS") for x in asked] == ["1", None]


def test_arrays_are_not_copied_on_their_way_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, bool]] = []
    tensor = ov.Tensor
    monkeypatch.setattr(
        "ptp.runtime.backends.openvino.ov.Tensor",
        lambda value, shared_memory: (made.append((value.ctypes.data, shared_memory)), tensor(value, shared_memory))[1],
    )
    graph = OpenVinoGraph(write_graph(tmp_path / "last.onnx"), SPEC)
    x = np.ones((1, 2, 4), np.float32)
    last = graph.run({"x": x})["last"]
    graph.run({"x": last})
    assert made == [(x.ctypes.data, True)]
