"""Which files a graph reads, without `onnx`."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptp.engines.onnx_files import external_files
from ptp.errors import IntegrityError


def graph() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.arange(4000, dtype=np.float32), "w")
    constant = numpy_helper.from_array(np.arange(4000, dtype=np.float32), "c")
    nodes = [
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("Add", ["x", "w"], ["s"]),
        helper.make_node("Add", ["s", "k"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4000]) for name in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "sum", values[:1], values[1:], [weights]))


def test_a_graph_that_holds_its_weights_reads_nothing(tmp_path):
    onnx.save(graph(), tmp_path / "g.onnx")
    assert external_files(tmp_path / "g.onnx") == set()


def test_files_of_initialisers_and_of_constants_are_found(tmp_path):
    model = graph()
    for tensor, location in ((model.graph.initializer[0], "w.bin"), (model.graph.node[0].attribute[0].t, "c.bin")):
        onnx.external_data_helper.set_external_data(tensor, location)
        (tmp_path / location).write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    assert external_files(tmp_path / "g.onnx") == {"w.bin", "c.bin"}


OVERRUN = b"\x3a\x02\x2a\x64" + bytes(200)  # a graph of two bytes, in which a tensor says that it has a hundred


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-100], lambda data: b"", lambda data: b"noise" + data, lambda data: OVERRUN]
)
def test_a_file_that_is_no_graph_is_refused(tmp_path, spoil):
    (tmp_path / "g.onnx").write_bytes(spoil(graph().SerializeToString()))
    with pytest.raises(IntegrityError, match=r"g\.onnx is not an ONNX graph"):
        external_files(tmp_path / "g.onnx")
