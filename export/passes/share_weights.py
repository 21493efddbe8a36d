"""Refer to weights that a graph written beside this one holds already, instead of writing them again."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

SMALLEST = 4096
"""Bytes below which a tensor is not worth a reference."""

BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class ShareWeights(ir.passes.InPlacePass):
    """Point initializers at equal tensors in another graph's external data.

    Args:
        written: ONNX file of the other graph, in the folder that this one will be written to.
    """

    def __init__(self, written: Path) -> None:
        super().__init__()
        self.written = written

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Return whether a weight was shared."""
        there: dict[object, list[ir.ExternalTensor]] = defaultdict(list)
        for value in ir.load(self.written).graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                there[_kind(value.const_value)].append(value.const_value)
        modified = False
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < SMALLEST:
                continue
            others = there.get(_kind(tensor), ())
            if not others:
                continue
            mine = _bits(tensor)
            twin = next((other for other in others if _equal(mine, other)), None)
            if twin is not None:
                value.const_value = ir.ExternalTensor(
                    twin.location, twin.offset, twin.length, twin.dtype,
                    shape=twin.shape, name=value.name or "", base_dir=twin.base_dir,
                )  # fmt: skip
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _kind(tensor: ir.TensorProtocol) -> object:
    return tensor.dtype, tuple(tensor.shape.numpy())


def _bits(tensor: ir.TensorProtocol) -> NDArray[np.unsignedinteger]:
    """Return the values as integers: −0 is not 0 here, and a NaN equals itself."""
    values = tensor.numpy()
    return values.view(BITS[values.itemsize])


def _equal(mine: NDArray[np.unsignedinteger], other: ir.ExternalTensor) -> bool:
    theirs = _bits(other)
    equal = np.array_equal(mine[:1], theirs[:1]) and np.array_equal(mine, theirs)
    del theirs
    other.release()  # its file is mapped, and what was read of it would stay in memory
    return equal


def shared_bytes(path: Path) -> int:
    """Return the bytes of weights that a written graph refers to in another graph's file."""
    tensors = [value.const_value for value in ir.load(path).graph.initializers.values()]
    external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    return sum(tensor.nbytes for tensor in external if tensor.location != f"{path.name}_data")
