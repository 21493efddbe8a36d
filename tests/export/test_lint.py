"""Each rule on a hand-built graph: what it refuses, and a clean graph that passes."""

import numpy as np
import onnx_ir as ir
import pytest

from ptp.errors import LintError
from ptp.export.lint import lint

FLOAT, INT32, INT64, BOOL, DOUBLE = (
    ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.DOUBLE,
)  # fmt: skip


def graph(op="Relu", *, dtype=FLOAT, shape=(2, 4), out_dtype=None, attributes=None, constants=(), domain="", opset=20):
    """Return a model of one node over one input and constant inputs."""
    x = ir.val("x", dtype=dtype, shape=shape)
    initializers = []
    for number, tensor in enumerate(constants):
        value = ir.Value(name=f"c{number}", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        initializers.append(value)
    node = ir.Node(domain, op, [x, *initializers], attributes=ir.convenience.convert_attributes(attributes or {}))
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(shape), ir.TensorType(out_dtype or dtype)
    body = ir.Graph([x], [y], nodes=[node], initializers=initializers, opset_imports={"": opset})
    return ir.Model(body, ir_version=10)


def test_a_clean_graph_passes():
    lint(graph(), "clean", static=True)


def topk(count, dtype=INT32):
    return graph("TopK", dtype=dtype, shape=(1, 9000), constants=[ir.tensor([count], dtype=INT64)])


def dequantize(codes, *zeros):
    """Return a model that scales constant codes, here and there with a zero point."""
    scales = ir.tensor(np.ones((1, *codes.shape[1:]), np.float32))
    model = graph("Relu", constants=[])
    constants = [
        ir.Value(name=f"c{number}", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        for number, tensor in enumerate((codes, scales, *zeros))
    ]
    node = ir.node("DequantizeLinear", constants, {"axis": 0, "block_size": 32})
    node.outputs[0].name, node.outputs[0].shape = "values", codes.shape
    node.outputs[0].type = ir.TensorType(FLOAT)
    model.graph.insert_before(model.graph[0], node)
    for value in constants:
        model.graph.register_initializer(value)
    return model


def test_codes_that_are_dequantised_pass():
    lint(dequantize(ir.tensor(np.zeros((32, 4), np.int8))), "quantised", static=True)


REFUSED = {
    "NonZero": graph("NonZero"),
    "Loop": graph("Loop"),
    "CumSum": graph("CumSum"),
    "BitwiseAnd": graph("BitwiseAnd", dtype=INT32),
    "Attention": graph("Attention"),
    "com.microsoft::Gelu": graph("Gelu", domain="com.microsoft"),
    "DOUBLE value": graph(dtype=DOUBLE),
    "rank 9": graph(shape=(1,) * 9),
    "Softmax on rank 1": graph("Softmax", shape=(4,)),
    "K = 3841": topk(3841),
    "FLOAT keys": topk(5, FLOAT),
    "MatMul on INT32": graph("MatMul", dtype=INT32),
    "ReduceMax on BOOL": graph("ReduceMax", dtype=BOOL),
    "with a reduction": graph("ScatterND", attributes={"reduction": "add"}),
    "opset 22": graph(opset=22),
    "UINT8 value": dequantize(ir.tensor(np.zeros((32, 4), np.uint8))),
    "INT8 value c0": dequantize(ir.tensor(np.zeros((32, 4, 1), np.int8))),
    "INT8 value c2": dequantize(ir.tensor(np.zeros((32, 4), np.int8)), ir.tensor(np.zeros((1, 4), np.int8))),
    "dynamic shape": graph(shape=("batch", 4)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_engines_refuse_is_refused(name):
    with pytest.raises(LintError, match=name):
        lint(REFUSED[name], "graph", static=True)


def test_topk_at_the_limit_and_dynamic_shapes_outside_the_vision_graph_pass():
    lint(topk(3840), "graph", static=True)
    lint(graph(shape=("batch", 4)), "decoder", static=False)


def topk_of_an_input(*steps):
    """Return a TopK whose K is an input after some steps; a step is an operator and its constant second input."""
    model = topk(5)
    node = next(iter(model.graph))
    count = ir.val("num_kept", dtype=INT64, shape=(1,))
    model.graph.inputs.append(count)
    for number, (op, constant) in enumerate(steps):
        tensor = ir.tensor(constant, dtype=INT64)
        second = ir.Value(name=f"s{number}", const_value=tensor, shape=tensor.shape, type=ir.TensorType(INT64))
        model.graph.initializers.add(second)
        step = ir.Node("", op, [count, second])
        count = step.outputs[0]
        count.name, count.shape, count.type = f"k{number}", ir.Shape((1,)), ir.TensorType(INT64)
        model.graph.insert_before(node, step)
    node.replace_input_with(1, count)
    return model


def test_topk_may_take_its_count_from_an_input():
    lint(topk_of_an_input(), "graph", static=True)
    lint(topk_of_an_input(("Reshape", [-1]), ("Gather", 0), ("Reshape", [-1])), "graph", static=True)


@pytest.mark.parametrize("step", [("Add", [1]), ("Gather", 1)])
def test_topk_with_a_computed_count_is_refused(step):
    with pytest.raises(LintError, match="neither a constant nor an input"):
        lint(topk_of_an_input(step), "graph", static=True)


def test_a_dimension_may_be_named_after_the_input_that_gives_it():
    model = graph(shape=("num_kept", 4))
    with pytest.raises(LintError, match="dynamic shape"):
        lint(model, "graph", static=True)
    model.graph.inputs.append(ir.val("num_kept", dtype=INT64, shape=(1,)))
    lint(model, "graph", static=True)


def test_an_older_ir_version_and_an_input_that_is_an_output_are_refused():
    model = graph()
    model.ir_version = 8
    model.graph.outputs.append(model.graph.inputs[0])
    with pytest.raises(LintError, match=r"2 forms.*IR version 8.*input x is also an output"):
        lint(model, "graph", static=True)
