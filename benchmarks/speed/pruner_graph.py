"""The pruner's own graph: what is left of a vision graph without the encoder and the projector.

Cut out of the exported file itself, so that it has what the export made of the pruner, and nothing that encoder and
pruner share. It takes the encoder's values that the pruner reads, and what else the vision graph takes. Where the
encoder is in a Scan, so is the saliency, which then counts as the encoder's.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.traversal import RecursiveGraphIterator

from ptp.benchmarks.speed.ptp_side import PRUNER_GRAPHS, PrunerGraphs
from ptp.bundle import Bundle
from ptp.bundle.manifest import Dtype, GraphSpec, TensorSpec
from ptp.bundle.writer import staged
from ptp.errors import BundleError

PROJECTOR = "encoder.projector."
"""Part of the names of the projector's weights."""

DTYPES: dict[ir.DataType | None, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}


def write_pruner(bundle: Bundle, folder: Path) -> None:
    """Write the pruner of each of a bundle's vision graphs, and its inputs and outputs.

    Args:
        bundle: the bundle.
        folder: where to; one that is there is left as it is.

    Raises:
        BundleError: a graph has no projector to cut at, or no runtime can feed what is left.
    """
    if folder.exists():
        return
    graphs = bundle.manifest.graphs
    with staged(folder, force=False) as stage:
        found = PrunerGraphs(
            vision_encoder=_write(bundle.path(graphs.vision_encoder.file), stage),
            vision_encoder_onnxruntime=_write(bundle.path(graphs.vision_encoder_onnxruntime.file), stage)
            if graphs.vision_encoder_onnxruntime
            else None,
        )
        (stage / PRUNER_GRAPHS).write_text(found.model_dump_json(), encoding="utf-8")


def _write(vision: Path, folder: Path) -> GraphSpec:
    model = ir.load(vision)
    cut(model.graph, f"{vision}")
    RemoveUnusedNodesPass()(model)
    ir.external_data.load_to_model(model)  # weights that stand in the decoder's file
    ir.save(model, folder / vision.name, external_data=f"{vision.name}_data")
    return GraphSpec(file=vision.name, inputs=_specs(model.graph.inputs), outputs=_specs(model.graph.outputs))


def cut(graph: ir.Graph, name: str) -> None:
    """Take encoder and projector out of a vision graph; values that crossed become inputs and outputs.

    Args:
        graph: it is changed.
        name: for the message.

    Raises:
        BundleError: the graph has no projector to cut at.
    """
    own = _encoder_and_projector(graph)
    if not own:
        raise BundleError(f"{name} has no projector to cut at", expected=f"matrices named *{PROJECTOR}*")
    rest = [node for node in graph if node not in own]
    reading = (inner for node in rest for inner in (node, *_inside(node)))
    taken = dict.fromkeys(x for node in reading for x in node.inputs if x is not None and x.producer() in own)
    given = dict.fromkeys(x for node in own for x in node.inputs if x is not None and x.producer() in set(rest))
    graph.outputs[:] = [x for x in graph.outputs if x.producer() not in own] + list(given)
    for value in taken:
        entry = ir.Value(name=value.name, shape=value.shape, type=value.type)
        convenience.replace_all_uses_with(value, entry)
        graph.inputs.append(entry)
    for inner in [inner for node in own for inner in _inside(node)]:
        inner.resize_inputs(0)  # what it read would still count as used
    graph.remove(own, safe=True)
    graph.inputs[:] = [x for x in graph.inputs if x.uses()]


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes of a node's branches, which read values of the graph around them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from RecursiveGraphIterator(attribute.as_graph())


def _encoder_and_projector(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that the projector needs, and its own.

    Without an instruction it projects the kept rows alone, and so needs the choice; there the walk follows what is
    gathered and not what chooses.
    """
    chosen = _downstream(next(x for x in graph.inputs if x.name == "tile_grid"))
    own = {name: x for name, x in graph.initializers.items() if PROJECTOR in name}
    waiting = [use.node for name, x in own.items() if ".weight" in name for use in x.uses()]
    found: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        inputs = list(node.inputs)
        if node.op_type == "Gather" and inputs[1] in chosen:
            inputs = inputs[:1]
        else:
            found.add(node)
        makers = [x.producer() for x in inputs if x is not None]
        waiting += [maker for maker in makers if maker is not None]
    # equal biases, such as zeros, are stored once: other layers may use the projector's
    users = [use.node for x in own.values() for use in x.uses()]
    return found | {node for node in users if any(x is not None and x.producer() in found for x in node.inputs)}


def _downstream(value: ir.Value) -> set[ir.Value]:
    found, waiting = set[ir.Value](), [value]
    while waiting:
        value = waiting.pop()
        if value not in found:
            found.add(value)
            waiting += [output for use in value.uses() for output in use.node.outputs]
    return found


def _specs(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in values)


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype not in DTYPES or value.shape is None:
        raise BundleError("the pruner reads a value that no runtime can feed", got=f"{value.name}: {value.type}")
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(name=str(value.name), dtype=DTYPES[value.dtype], shape=shape)
