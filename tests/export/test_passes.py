import onnx_ir as ir

from ptp.bundle.manifest import TensorSpec
from ptp.export.passes import ApplyContract, HideProbes


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
