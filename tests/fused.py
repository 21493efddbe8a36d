"""The decoder for ONNX Runtime alone, added to a bundle that was exported without it."""

from pathlib import Path

from ptp.bundle.manifest import MANIFEST_NAME, GraphSpec, Manifest
from ptp.bundle.writer import file_entry
from ptp.export.checkpoint import find_weights, make_skeleton, open_checkpoint
from ptp.export.fused_decoder import FusedDecoderGraph
from ptp.export.specs import fused_decoder_io
from ptp.export.to_onnx import save, trace


def add_fused_decoder(folder: Path, checkpoint: str) -> None:
    """Write the decoder into a bundle's folder, and its manifest anew.

    Args:
        folder: the bundle's.
        checkpoint: what it was exported from.
    """
    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text())
    precision = manifest.model.precision
    io = fused_decoder_io(manifest.language_model, precision)
    opened = open_checkpoint(checkpoint, None, weights=True)
    skeleton = make_skeleton(opened, find_weights(opened, precision))
    graph = FusedDecoderGraph(skeleton.model)
    path = folder / "onnx" / "decoder_onnxruntime.onnx"
    save(trace(graph, io, opset=manifest.opset, initializers=skeleton.initializers(graph)), path)
    spec = GraphSpec(file=f"onnx/{path.name}", inputs=io.inputs, outputs=io.outputs)
    changed = manifest.model_copy(
        update={
            "graphs": manifest.graphs.model_copy(update={"decoder_onnxruntime": spec}),
            "files": manifest.files | {spec.file: file_entry(path)},
        }
    )
    (folder / MANIFEST_NAME).write_text(changed.to_json())
