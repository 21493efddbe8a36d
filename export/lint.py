"""Refuse graph forms that a TensorRT from 10.3 on refuses, or silently reads differently (docs/tensorrt.md).

Each rule is a function from a graph to the problems it sees; `LINT` and `STATIC_LINT` are the lists of them. A rule's
docstring says why the form is refused, as measured with TensorRT-RTX 1.7 or read in TensorRT 10.3's importer.
"""

from collections.abc import Callable, Iterator

import onnx_ir as ir

from ptp.errors import LintError
from ptp.ptp_graph.schedule import TOPK_LIMIT

Rule = Callable[[ir.Model], Iterator[str]]

OPSETS = range(18, 22)
IR_VERSION = 10
"""The newest ONNX IR that TensorRT 10.3 reads."""

MAX_RANK = 8

FORBIDDEN_OPS = frozenset(
    # data-dependent shapes
    "NonZero Compress Unique"
    # control flow, and CumSum, which is a loop before 10.8
    " Loop If Scan CumSum SequenceMap"
    # not in the importers
    " BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot"
    # opset 23, not in 10.3
    " Attention RMSNormalization RotaryEmbedding".split()
)
NEEDS_RANK_2 = frozenset({"Softmax", "LogSoftmax", "ArgMax", "ArgMin", "TopK"})
SCATTERS = frozenset({"ScatterElements", "ScatterND", "Scatter"})
INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.INT8, ir.DataType.UINT8})


def lint(model: ir.Model, name: str, *, static: bool) -> None:
    """Check a model against every rule.

    Args:
        model: the model as it will be written.
        name: how messages call it.
        static: every dimension must be a number (the vision graph).

    Raises:
        LintError: names every problem, not only the first.
    """
    problems = [problem for rule in (STATIC_LINT if static else LINT) for problem in rule(model)]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise LintError(f"{name} contains {len(problems)} forms outside what TensorRT 10.3 to 11 read: {shown}")


def format_version(model: ir.Model) -> Iterator[str]:
    """Opset 18 to 20 and IR 10 are what every parser from 10.3 on reads, and 21 for DequantizeLinear by blocks."""
    if model.ir_version != IR_VERSION:
        yield f"IR version {model.ir_version} (expected {IR_VERSION})"
    opset = model.opset_imports.get("")
    if opset not in OPSETS:
        yield f"opset {opset} (expected 18 to 21)"


def stock_operators(model: ir.Model) -> Iterator[str]:
    """No custom domain, no function, no operator outside the importers."""
    for function in model.functions:
        yield f"function {'::'.join(map(str, function[:2]))}"
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            yield f"{node.domain}::{node.op_type} ({node.name})"
        elif node.op_type in FORBIDDEN_OPS:
            yield f"{node.op_type} ({node.name})"


def element_types(model: ir.Model) -> Iterator[str]:
    """DOUBLE silently becomes FLOAT; small integers are not computed with, weights of them are dequantised."""
    allowed = {"FLOAT", "FLOAT16", "INT32", "INT64", "BOOL"}
    for value in _values(model):
        if value.dtype is not None and value.dtype.name not in allowed and not _is_quantized_weight(value):
            yield f"{value.dtype.name} value {value.name}"


def ranks(model: ir.Model) -> Iterator[str]:
    """Rank 8 is the most; softmax, arg operators and TopK want at least 2."""
    for value in _values(model):
        if value.shape is not None and len(value.shape) > MAX_RANK:
            yield f"rank {len(value.shape)} value {value.name}"
    for node in model.graph.all_nodes():
        shape = _shape(node.inputs[0]) if node.inputs else None
        if node.op_type in NEEDS_RANK_2 and shape is not None and len(shape) < 2:
            yield f"{node.op_type} on rank {len(shape)} ({node.name})"


def topk(model: ir.Model) -> Iterator[str]:
    """K is at most 3840 in every version, and a constant or an input; keys are INT32: tie order is undocumented."""
    for node in model.graph.all_nodes():
        if node.op_type != "TopK":
            continue
        count = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        if count is None:
            if not _is_an_input(node.inputs[1]):
                yield f"TopK whose K is neither a constant nor an input ({node.name})"
        elif int(count.numpy().item()) > TOPK_LIMIT:
            yield f"TopK with K = {int(count.numpy().item())}, more than {TOPK_LIMIT} ({node.name})"
        if node.inputs[0] is not None and node.inputs[0].dtype != ir.DataType.INT32:
            yield f"TopK over {node.inputs[0].dtype} keys, not INT32 ({node.name})"


def integer_arithmetic(model: ir.Model) -> Iterator[str]:
    """Integer MatMul and ReduceMax/ReduceMin over BOOL are refused; scatters may not reduce."""
    for node in model.graph.all_nodes():
        dtype = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
        if node.op_type in ("MatMul", "Gemm") and dtype in INTEGERS:
            yield f"{node.op_type} on {dtype} ({node.name})"
        if node.op_type in ("ReduceMax", "ReduceMin") and dtype == ir.DataType.BOOL:
            yield f"{node.op_type} on BOOL ({node.name})"
        if node.op_type in SCATTERS and "reduction" in node.attributes:
            yield f"{node.op_type} with a reduction ({node.name})"


def inputs_are_not_outputs(model: ir.Model) -> Iterator[str]:
    """A graph input that is also an output gets another name in the engine."""
    outputs = {value.name for value in model.graph.outputs}
    for value in model.graph.inputs:
        if value.name in outputs:
            yield f"input {value.name} is also an output"


def static_shapes(model: ir.Model) -> Iterator[str]:
    """Every dimension is a number, or one that an input of its name gives: shapes never depend on the image."""
    given = {value.name for value in model.graph.inputs}
    for value in _values(model):
        shape = _shape(value)
        if shape is None:
            yield f"value {value.name} of unknown shape"
        elif not all(isinstance(size, int) or size.value in given for size in shape):
            yield f"value {value.name} of dynamic shape {value.shape}"


LINT: tuple[Rule, ...] = (
    format_version,
    stock_operators,
    element_types,
    ranks,
    topk,
    integer_arithmetic,
    inputs_are_not_outputs,
)
STATIC_LINT: tuple[Rule, ...] = (*LINT, static_shapes)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from (value for value in node.outputs if value.name)


def _is_quantized_weight(value: ir.Value) -> bool:
    """Return whether it is a constant matrix of INT4 or INT8 that is dequantised with zero point 0 (none given)."""
    return (
        value.is_initializer()
        and value.dtype in (ir.DataType.INT4, ir.DataType.INT8)
        and len(value.shape or ()) == 2  # 10.3 takes no other in INT4
        and all(
            use.node.op_type == "DequantizeLinear" and use.idx == 0 and len(use.node.inputs) == 2
            for use in value.uses()
        )
    )


def _is_an_input(value: ir.Value | None) -> bool:
    """Return whether a value is a graph input as it is, but for its rank."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Reshape", "Squeeze", "Unsqueeze", "Identity") and not _takes_first(node):
            return False
        value = node.inputs[0]
    return value is not None and value.is_graph_input() and value.dtype == ir.DataType.INT64


def _takes_first(node: ir.Node) -> bool:
    index = ir.convenience.get_const_tensor(node.inputs[1]) if node.op_type == "Gather" and node.inputs[1] else None
    return index is not None and not index.numpy().any()


def _shape(value: ir.Value | None) -> ir.Shape | None:
    return value.shape if value is not None else None
