"""Store the language model's matrices as INT4 or INT8, behind DequantizeLinear in blocks along their input."""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ptp.bundle.manifest import Quantization, WeightType
from ptp.errors import ExportError
from ptp.export.quantization import BITS, Array, quantize, weight_type

CODES = {"int4": ir.DataType.INT4, "int8": ir.DataType.INT8}


class QuantizeWeights(ir.passes.InPlacePass):
    """Replace each matrix of the language model by its codes, its scales and a DequantizeLinear.

    Nothing is computed yet: codes and scales are made from the matrix, one at a time, when they are written.

    Args:
        quantization: what is quantised, and how.
    """

    def __init__(self, quantization: Quantization) -> None:
        super().__init__()
        self.quantization = quantization

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Return whether a matrix was quantised.

        Raises:
            ExportError: one is used in another way than to be multiplied with from the right.
        """
        modified = False
        for name, weight in list(model.graph.initializers.items()):
            dtype = weight_type(name, self.quantization)
            if dtype is None or weight.const_value is None:
                continue
            uses = [(use.node, use.idx) for use in weight.uses()]
            if not uses or any((node.op_type, place) != ("MatMul", 1) for node, place in uses):
                got = ", ".join(f"{node.op_type} {place}" for node, place in uses)
                raise ExportError(f"{name} cannot be quantised", got=f"used by {got}", expected="MatMul 1")
            _quantize(model.graph, weight, dtype, self.quantization.block_size)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _quantize(graph: ir.Graph, weight: ir.Value, dtype: WeightType, block_size: int) -> None:
    matrix, name = weight.const_value, str(weight.name)
    assert matrix is not None
    size, width = (int(n) for n in matrix.shape.numpy())  # (K, N)
    code_type, scale_type = CODES[dtype], matrix.dtype

    def codes() -> ir.TensorProtocol:
        found = _parts(matrix, dtype, block_size)[0]
        return ir.Tensor(found.astype(ml_dtypes.int4) if dtype == "int4" else found, dtype=code_type)

    def scales() -> ir.TensorProtocol:
        return ir.Tensor(_parts(matrix, dtype, block_size)[1], dtype=scale_type)

    stored = (
        ir.LazyTensor(codes, dtype=code_type, shape=ir.Shape([size, width]), name=f"{name}.codes"),
        ir.LazyTensor(scales, dtype=scale_type, shape=ir.Shape([size // block_size, width]), name=f"{name}.scales"),
    )
    inputs = [
        ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        for tensor in stored
    ]
    node = ir.node("DequantizeLinear", inputs, {"axis": 0, "block_size": block_size}, name=f"{name}.dequantize")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"{name}.values", weight.type, weight.shape
    first = next(node for node in graph if weight in node.inputs)
    graph.insert_before(first, node)
    ir.convenience.replace_all_uses_with(weight, node.outputs[0])
    del graph.initializers[name]
    for value in inputs:
        graph.register_initializer(value)


def _parts(matrix: ir.TensorProtocol, dtype: WeightType, block_size: int) -> tuple[Array, Array]:
    return quantize(np.asarray(matrix.numpy()), BITS[dtype], block_size)
