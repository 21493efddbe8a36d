"""What pruning adds to the vision encoder's time: CLIP-L/336 on five tiles, random weights, ONNX Runtime on the CPU.

    python benchmarks/pruner.py [--keep 0.25] [--repeats 5]

These graphs run in turn, so that a slow moment of the machine hits all of them; medians and ratios are printed:

- `unpruned`: the encoder, and the projector over all tokens;
- `unpruned by tile`: the same, one tile after the other, as `--optimize onnxruntime` has it;
- `none`, `similarity`: the vision graph as exported;
- `pruner none`, `pruner similarity`: everything in them but encoder and projector, on the encoder's own outputs.

Node counts are those of the traced graph, and of the graph that is written. What `attention` costs is measured by
`benchmarks/attention.py`.

Run it with nothing else running: two threads on two cores fall back ten-fold beside a third process.
"""

import argparse
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import onnxruntime
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from ptp.benchmarks.random_feeds import random_feeds
from ptp.bundle.manifest import Instruction, TensorSpec
from ptp.export.adapters.base import TileEncoder
from ptp.export.adapters.llava_next import LlavaNext
from ptp.export.specs import GraphIO, vision_io
from ptp.export.tile_by_tile import TileByTile
from ptp.export.to_onnx import save, trace
from ptp.export.vision import VisionGraph
from ptp.ptp_graph.saliency import cls_attention
from ptp.ptp_graph.schedule import Schedule

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
HIDDEN, MAX_PROMPT, SALIENCY_LAYER = 4096, 256, 10
TILES, TOKENS, WIDTH, HEADS = 5, 576, 1024, 16
IMAGE_INPUTS = {"image_sizes": [[672, 672]], "tile_grid": [[2, 2]], "alpha": [0.5], "prefix_length": [5]}
"""A square image on the 2x2 grid, and a question."""


class Unpruned(nn.Module):
    """The encoder and the projector over all tokens."""

    def __init__(self, encoder: TileEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return (T, N, H)."""
        features, _, _ = self.encoder.encode(pixel_values.flatten(0, 1))
        return self.encoder.project(features)


class Prepared(TileEncoder):
    """An encoder whose work is done: its "tiles" are projected tokens and, beside them, hidden states.

    Only the saliency is still to compute, from the hidden states at its block. Taking the two apart costs a copy, which
    counts as the pruner's.
    """

    def __init__(self, block: Any, newline: Tensor) -> None:
        super().__init__()
        self.block, self.row_end = block, newline

    def encode(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TileEncoder.encode`."""
        attention, hidden = self.block.self_attn, tiles[..., HIDDEN:]
        normed = self.block.layer_norm1(hidden)
        query = self._heads(attention.q_proj(normed[:, :1]) * attention.scale)
        return tiles[:, 1:, :HIDDEN], cls_attention(query, self._heads(attention.k_proj(normed))), hidden[:, 0]

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.reshape(TILES, -1, HEADS, WIDTH // HEADS).transpose(1, 2)  # (T, heads, s, d)

    def project(self, features: Tensor) -> Tensor:
        """Nothing: the features are projected."""
        return features

    @property
    def newline(self) -> Tensor:
        """See `TileEncoder.newline`."""
        return self.row_end


def main() -> None:
    """Build the graphs, time them in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Fraction, default=Fraction(1, 4))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sessions = build(Path(folder), options.keep)
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(options.repeats + 1):  # the first round warms up
            for name, (session, feeds) in sessions.items():
                start = time.perf_counter()
                session.run(None, feeds)
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"CLIP-L/336 × {TILES} tiles, keep {float(options.keep)}, fp32, median of {options.repeats}")
    print("| graph | milliseconds | of unpruned |\n|---|---|---|")
    for name, value in median.items():
        print(f"| {name} | {1000 * value:.1f} | {100 * value / median['unpruned']:.2f} % |")


def build(folder: Path, keep: Fraction) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return each graph's session and inputs."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=HEADS,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=1, vocab_size=8)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(vision_config=vision, text_config=text)).eval()
    encoder = LlavaNext.build_encoder(model, SALIENCY_LAYER)
    schedule = Schedule(keep=keep, side=24, grids=GRIDS)

    def add(name: str, module: nn.Module, io: GraphIO) -> None:
        before = sum(1 for _ in trace(module, io, opset=20, optimize=False).graph)
        traced = trace(module, io, opset=20)
        print(f"{name}: {before} nodes traced, {sum(1 for _ in traced.graph)} written", flush=True)
        path = folder / name.replace(" ", "_") / "graph.onnx"
        save(traced, path)
        del traced
        feeds = random_feeds(io.inputs, IMAGE_INPUTS)
        sessions[name] = (onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), feeds)

    sessions: dict[str, tuple[Any, dict[str, Any]]] = {}
    pixels = TensorSpec(name="pixel_values", dtype="float32", shape=(1, TILES, 3, 336, 336))
    projected = TensorSpec(name="projected", dtype="float32", shape=(TILES, TOKENS, HIDDEN))
    for name, form in (("unpruned", encoder), ("unpruned by tile", TileByTile(encoder))):
        add(name, Unpruned(form), GraphIO(inputs=(pixels,), outputs=(projected,)))
    modes: tuple[Instruction, ...] = ("none", "similarity")
    for mode in modes:
        io = vision_io(
            schedule, instruction=mode, precision="fp32", tile_size=336, hidden_size=HIDDEN, max_prompt=MAX_PROMPT
        )
        add(mode, VisionGraph(encoder, schedule, mode, "cls_cosine", 0.1), io)
        prepared = Prepared(model.model.vision_tower.encoder.layers[SALIENCY_LAYER], model.model.image_newline)
        pruner = VisionGraph(prepared, schedule, mode, "cls_cosine", 0.1)
        done = TensorSpec(name="pixel_values", dtype="float32", shape=(1, TILES, 1 + TOKENS, HIDDEN + WIDTH))
        add(f"pruner {mode}", pruner, GraphIO(inputs=(done, *io.inputs[1:]), outputs=io.outputs, probes=io.probes))
    return sessions


if __name__ == "__main__":
    main()
