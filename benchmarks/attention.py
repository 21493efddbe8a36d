"""What `--instruction attention` adds, against a full prefill: 7B geometry, random weights, ONNX Runtime on the CPU.

    python benchmarks/attention.py [--keep 0.25] [--layers 32] [--repeats 1]

Three runs over LLaVA-NeXT-Vicuna-7B's sizes (CLIP-L/336 × 5 tiles, Llama with 32 blocks of width 4096, a prompt of 256
tokens, a square image), each timed by itself:

- `pruner attention`: the whole pruner on the encoder's outputs, the language model's early blocks among it;
- `prefill unpruned`: the whole language model over prompt and all visual tokens;
- `prefill pruned`: the same graph over prompt and K rows.

The decoder's blocks share one block's weights, so that 32 of them fit into memory; what they compute is not changed by
that. ONNX Runtime's packing of weights is off in all graphs, since it would copy them for each block.

It takes about 20 minutes and 12 GiB. Run it with nothing else running.
"""

import argparse
import copy
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from ptp.anyres import PackedLayout
from ptp.benchmarks.pruner import (
    GRIDS,
    HEADS,
    IMAGE_INPUTS,
    MAX_PROMPT,
    SALIENCY_LAYER,
    TILES,
    TOKENS,
    WIDTH,
    Prepared,
)
from ptp.benchmarks.random_feeds import random_feeds
from ptp.bundle.manifest import LanguageModel, TensorSpec
from ptp.export.adapters.llava_next import LlavaNext
from ptp.export.decoder import DecoderGraph
from ptp.export.passes import ShareWeights, shared_bytes
from ptp.export.specs import GraphIO, decoder_io, vision_io
from ptp.export.to_onnx import save, trace
from ptp.export.vision import VisionGraph
from ptp.ptp_graph.schedule import Schedule

HIDDEN, INTERMEDIATE, LM_HEADS, VOCABULARY = 4096, 11008, 32, 8
SIZE, GRID = (672, 672), (2, 2)


def main() -> None:
    """Build the graphs, time them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Fraction, default=Fraction(1, 4))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    schedule = Schedule(keep=options.keep, side=24, grids=GRIDS)
    length = PackedLayout(height=SIZE[0], width=SIZE[1], grid=GRID, side=24).length
    with tempfile.TemporaryDirectory() as folder:
        model = build_model()
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("two_blocks", "pruner", "decoder")}
        write_decoder(model, 2, paths["two_blocks"])
        write_pruner(model, schedule, paths["pruner"], beside=paths["two_blocks"])
        print(f"weights that the pruner shares with the decoder's file: {shared_bytes(paths['pruner'])} bytes in fp32")
        repeat_first_block(model, options.layers)
        sizes = write_decoder(model, options.layers, paths["decoder"])
        del model
        pruner = run_pruner(paths["pruner"], schedule, options.repeats)
        decoder = session(paths["decoder"])
        tokens = {"prefill unpruned": MAX_PROMPT + length, "prefill pruned": MAX_PROMPT + schedule.num_kept}
        seconds = {name: run_prefill(decoder, sizes, count, options.repeats) for name, count in tokens.items()}
    print(f"{options.layers} blocks, keep {float(options.keep)}, fp32, median of {options.repeats}")
    print("| run | tokens | seconds | of the unpruned prefill |\n|---|---|---|---|")
    whole = seconds["prefill unpruned"]
    seconds["pruner attention"], tokens["pruner attention"] = pruner, MAX_PROMPT + schedule.max_packed_length
    for name, value in seconds.items():
        print(f"| {name} | {tokens[name]} | {value:.2f} | {100 * value / whole:.1f} % |")


def build_model() -> Any:
    """Return a model of two blocks and one CLIP layer more than the saliency needs."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4096,
        num_hidden_layers=SALIENCY_LAYER + 1,
        num_attention_heads=HEADS,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=2,
        num_attention_heads=LM_HEADS,
        vocab_size=VOCABULARY,
    )
    return LlavaNextForConditionalGeneration(LlavaNextConfig(vision_config=vision, text_config=text)).eval()


def write_pruner(model: Any, schedule: Schedule, path: Path, beside: Path) -> None:
    """Write everything of the vision graph but encoder and projector, weights shared as in an export."""
    io = pruner_io(schedule)
    prepared = Prepared(model.model.vision_tower.encoder.layers[SALIENCY_LAYER], model.model.image_newline)
    early = LlavaNext.build_early_blocks(model)
    traced = trace(VisionGraph(prepared, schedule, "attention", "cls_cosine", 0.1, early), io, opset=20)
    ShareWeights(beside)(traced)
    save(traced, path)


def pruner_io(schedule: Schedule) -> GraphIO:
    """Return the vision graph's contract with the encoder's outputs for its pixels."""
    io = vision_io(
        schedule, instruction="attention", precision="fp32", tile_size=336, hidden_size=HIDDEN, max_prompt=MAX_PROMPT
    )
    done = TensorSpec(name="pixel_values", dtype="float32", shape=(1, TILES, 1 + TOKENS, HIDDEN + WIDTH))
    return GraphIO(inputs=(done, *io.inputs[1:]), outputs=io.outputs, probes=io.probes)


def repeat_first_block(model: Any, layers: int) -> None:
    """Make the language model's first block all of its blocks, as modules of their own over the same weights."""
    language = model.model.language_model
    block = language.layers[0]
    blocks = [copy.deepcopy(block, {id(weight): weight for weight in block.parameters()}) for _ in range(layers)]
    for number, twin in enumerate(blocks):
        twin.self_attn.layer_idx = number
    language.layers, language.config.num_hidden_layers = nn.ModuleList(blocks), layers


def write_decoder(model: Any, layers: int, path: Path) -> LanguageModel:
    """Write the decoder; return its sizes."""
    sizes = LanguageModel(
        num_layers=layers,
        num_kv_heads=LM_HEADS,
        head_dim=HIDDEN // LM_HEADS,
        hidden_size=HIDDEN,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
    )
    save(trace(DecoderGraph(model), decoder_io(sizes, "fp32"), opset=20), path)
    return sizes


def session(path: Path) -> Any:
    """Return a session that keeps one copy of each weight."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_pruner(path: Path, schedule: Schedule, repeats: int) -> float:
    """Return the seconds of one call."""
    return timed(session(path), random_feeds(pruner_io(schedule).inputs, IMAGE_INPUTS), repeats)


def run_prefill(decoder: Any, sizes: LanguageModel, tokens: int, repeats: int) -> float:
    """Return the seconds of one prefill."""
    empty = np.zeros((1, sizes.num_kv_heads, 0, sizes.head_dim), np.float32)
    feeds: dict[str, Any] = {
        spec.name: empty for spec in decoder.get_inputs() if spec.name.startswith("past_key_values")
    }
    feeds |= {
        "inputs_embeds": np.random.default_rng(0).normal(size=(1, tokens, sizes.hidden_size)).astype(np.float32),
        "attention_mask": np.ones((1, tokens), np.int64),
        "position_ids": np.arange(tokens)[None],
    }
    return timed(decoder, feeds, repeats)


def timed(graph: Any, feeds: dict[str, Any], repeats: int) -> float:
    """Return the median of some runs, in seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        graph.run(None, feeds)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
