import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from ptp.bundle.manifest import TensorSpec
from ptp.export import to_onnx
from ptp.export.passes import ApplyContract, HideProbes, ShareWeights, TransposeWeights, shared_bytes
from ptp.export.to_onnx import save


def chain(*shape):
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=shape)
    first = ir.Node("", "Relu", [x])
    second = ir.Node("", "Neg", [first.outputs[0]])
    for node, name in ((first, "probe"), (second, "y")):
        value = node.outputs[0]
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(
        ir.Graph([x], [second.outputs[0], first.outputs[0]], nodes=[first, second], opset_imports={"": 20}),
        ir_version=10,
    )


def test_a_hidden_probe_stays_a_named_inner_value():
    model = chain(1)
    assert HideProbes(1)(model).modified
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert "probe" in {value.name for node in model.graph for value in node.outputs}


def test_hiding_nothing_changes_nothing():
    assert not HideProbes(0)(chain(1)).modified


def test_dimensions_take_the_contracts_names():
    model = chain("s0", 4)
    specs = [TensorSpec(name="x", dtype="float32", shape=("batch_size", 4))]
    assert ApplyContract(specs, [])(model).modified
    assert [str(d) for d in model.graph.inputs[0].shape] == ["batch_size", "4"]
    assert not ApplyContract(specs, [])(model).modified


def test_a_number_is_never_renamed():
    model = chain(2, 4)
    assert not ApplyContract([TensorSpec(name="x", dtype="float32", shape=("batch_size", 4))], [])(model).modified


def test_a_dimension_is_named_inside_too_and_others_keep_their_names():
    """What depends on data must stay visible to the lint."""
    model = chain("u0", "u99")
    ApplyContract([TensorSpec(name="x", dtype="float32", shape=("num_kept", 4))], [])(model)
    assert {tuple(map(str, value.shape)) for node in model.graph for value in node.outputs} == {("num_kept", "u99")}


def weighted(*weights):
    """Return a model that adds its weights to its input."""
    value = ir.val("x", dtype=ir.DataType.FLOAT, shape=(64, 64))
    x, nodes, initializers = value, [], []
    for number, weight in enumerate(weights):
        initializer = ir.Value(name=f"w{number}", const_value=ir.tensor(weight), shape=ir.Shape(weight.shape))
        initializers.append(initializer)
        nodes.append(ir.Node("", "Add", [value, initializer]))
        value = nodes[-1].outputs[0]
        value.name, value.shape, value.type = f"y{number}", ir.Shape((64, 64)), ir.TensorType(ir.DataType.FLOAT)
    body = ir.Graph([x], [value], nodes=nodes, initializers=initializers, opset_imports={"": 20})
    return ir.Model(body, ir_version=10)


def test_weights_are_transposed_where_they_are_used_in_no_other_way():
    """`twice` is transposed by two nodes alike, `both` also used as it is; only the first may be stored transposed."""
    values = {name: np.random.default_rng(seed).normal(size=(3, 3)) for seed, name in enumerate(("twice", "both"))}
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["": 20]>
        transposing (double[3, 3] x) => (double[3, 3] y)
        {
            a = Transpose<perm = [1, 0]>(twice)
            b = Transpose<perm = [1, 0]>(twice)
            c = Transpose<perm = [1, 0]>(both)
            xa = MatMul(x, a)
            xab = MatMul(xa, b)
            xabc = MatMul(xab, c)
            y = MatMul(xabc, both)
        }""",
        initializers=[ir.tensor(value, name=name) for name, value in values.items()],
    )
    assert TransposeWeights()(model).modified
    assert [node.op_type for node in model.graph].count("Transpose") == 1
    x = np.arange(9.0).reshape(3, 3)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    twice, both = values["twice"], values["both"]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ twice.T @ twice.T @ both.T @ both)
    assert not TransposeWeights()(model).modified


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A graph with two weights in external data, the second of zeros."""
    monkeypatch.setattr(to_onnx, "INLINE_LIMIT", 1000)
    first = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    save(weighted(first, np.zeros((64, 64), np.float32)), tmp_path / "first.onnx")
    return first, tmp_path / "first.onnx"


def test_weights_that_another_graph_holds_are_referred_to(written, tmp_path):
    first, path = written
    own = first + 1
    # views with other strides, as the tracer's folded transposes are
    model = weighted(own, np.asfortranarray(first))
    assert ShareWeights(path)(model).modified
    save(model, tmp_path / "second.onnx")
    assert shared_bytes(tmp_path / "second.onnx") == first.nbytes
    assert (tmp_path / "second.onnx_data").stat().st_size == own.nbytes
    loaded = ir.load(tmp_path / "second.onnx").graph.initializers
    assert loaded["w1"].const_value.location == "first.onnx_data"
    np.testing.assert_array_equal(loaded["w0"].const_value.numpy(), own)
    np.testing.assert_array_equal(loaded["w1"].const_value.numpy(), first)


def test_weights_of_other_bits_or_of_graphs_in_one_file_are_not_shared(written, tmp_path):
    first, path = written
    other = first.copy()
    other[-1, -1] = np.nextafter(other[-1, -1], np.float32(9))
    assert not ShareWeights(path)(weighted(other, np.full((64, 64), -0.0, np.float32))).modified
    assert not ShareWeights(path)(weighted(first.T.copy(), first[:32])).modified
    to_onnx.INLINE_LIMIT = 1 << 20
    save(weighted(first), tmp_path / "inline.onnx")
    assert not ShareWeights(tmp_path / "inline.onnx")(weighted(first)).modified
