"""Store weights the way they are multiplied: a transposed one is written transposed, and its nodes vanish."""

import onnx_ir as ir
import torch


class TransposeWeights(ir.passes.InPlacePass):
    """Turn each initializer that is used in one transposition only into one that is transposed when it is read.

    onnxscript's constant folding does the same to some of them, with the results in memory at once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Return whether a weight was turned."""
        modified = False
        for name, weight in list(model.graph.initializers.items()):
            tensor, users = weight.const_value, weight.consumers()
            orders = {tuple(node.attributes["perm"].as_ints()) if node.op_type == "Transpose" else () for node in users}
            if tensor is None or len(orders) != 1 or () in orders:
                continue
            (order,) = orders
            lazy = _turned(tensor, order)
            turned = ir.Value(name=f"{name}.transposed", type=weight.type, shape=lazy.shape, const_value=lazy)
            model.graph.register_initializer(turned)
            for node in users:
                ir.convenience.replace_all_uses_with(node.outputs[0], turned)
                assert node.graph is not None
                node.graph.remove(node, safe=True)  # its own graph: the body of a Scan, too
            del model.graph.initializers[name]
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _turned(tensor: ir.TensorProtocol, order: tuple[int, ...]) -> ir.LazyTensor:
    def turn() -> ir.TensorProtocol:
        # numpy takes more than twice as long
        return ir.Tensor(torch.from_numpy(tensor.numpy()).permute(order).contiguous().numpy(), dtype=tensor.dtype)

    return ir.LazyTensor(turn, dtype=tensor.dtype, shape=ir.Shape([tensor.shape.numpy()[axis] for axis in order]))
