"""Sizes before anything is loaded: parameters counted on the meta device, memory estimated from them."""

from dataclasses import dataclass
from typing import Any

import torch

from ptp.engines import tensorrt_rtx
from ptp.export.checkpoint import DTYPES, Checkpoint
from ptp.export.decoder import DecoderGraph, EmbedGraph
from ptp.export.language import drop_late_blocks
from ptp.export.plan import Plan
from ptp.export.vision import build_vision_graph

BASE_BYTES = 750 << 20
"""Python with torch, transformers, onnx and ONNX Runtime imported, and a traced graph."""

RTX_BASE_BYTES = 400 << 20
RTX_WEIGHT_COPIES = 3
"""What TensorRT-RTX's builder holds in its own process: libraries, and the graph's weights about three times."""

RUNTIME_BASE_BYTES = 120 << 20
"""Python with ONNX Runtime, numpy, Pillow and tokenizers."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes on disk and in memory.

    Attributes:
        vision: weights of `vision_encoder.onnx`, those among them that are in the decoder's file.
        embed: weights of `embed_tokens.onnx`.
        decoder: weights of `decoder_model_merged.onnx`.
        cache: key/value cache for the longest prompt and K visual tokens.
        export: estimated peak of the export.
        run: estimated peak of a run on ONNX Runtime's CPU provider.
    """

    vision: int
    embed: int
    decoder: int
    cache: int
    export: int
    run: int


def estimate(plan: Plan, checkpoint: Checkpoint) -> Sizes:
    """Estimate sizes from the configuration alone.

    An export holds all weights once, until embedding and decoder are written. Then the language model's later blocks
    are dropped, and one after the other come ONNX Runtime with the vision graph and its activations, compared with what
    is left of the model, and TensorRT-RTX's builder where it is installed. A run holds all weights, the cache and the
    encoder's activations; ONNX Runtime on the CPU computes float16 graphs with float32 copies of their weights.
    """
    itemsize = DTYPES[plan.config.precision].itemsize
    with torch.device("meta"):
        model = checkpoint.adapter.load_class()._from_config(checkpoint.config)
    vision, embed, decoder = (
        itemsize * _parameters(module)
        for module in (
            build_vision_graph(plan, checkpoint, model),
            EmbedGraph(model),
            DecoderGraph(model),
        )
    )
    text = plan.language_model
    tokens = plan.config.max_prompt + plan.schedule.num_kept_range[1]
    cache = 2 * text.num_layers * text.num_kv_heads * text.head_dim * itemsize * tokens
    activations = _vision_activations(plan, checkpoint)
    compute = 2 if plan.config.precision == "fp16" else 1
    loaded = itemsize * _parameters(model)
    drop_late_blocks(model)
    left = itemsize * _parameters(model)
    parity = (1 + compute) * vision + activations
    build = RTX_BASE_BYTES + RTX_WEIGHT_COPIES * vision if tensorrt_rtx.is_installed() else 0
    return Sizes(
        vision=vision,
        embed=embed,
        decoder=decoder,
        cache=cache,
        export=BASE_BYTES + max(loaded, left + max(parity, build)),
        run=RUNTIME_BASE_BYTES + (1 + (compute - 1) * 2) * (vision + embed + decoder) + cache + activations,
    )


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in {id(p): p for p in module.parameters()}.values())


def _vision_activations(plan: Plan, checkpoint: Checkpoint) -> int:
    """Return the bytes that the largest block holds at once in float32: attention of all heads, and the MLP."""
    vision, text = checkpoint.config.vision_config, checkpoint.config.text_config
    largest = plan.config.batch * plan.schedule.num_tiles * _block_values(vision, plan.schedule.tokens_per_tile + 1)
    if plan.config.instruction == "attention":
        tokens = plan.config.max_prompt + plan.schedule.max_packed_length
        largest = max(largest, plan.config.batch * _block_values(text, tokens))
    return 4 * largest


def _block_values(config: Any, tokens: int) -> int:
    attention = 2 * config.num_attention_heads * tokens**2
    return int(attention + tokens * (4 * config.hidden_size + 2 * config.intermediate_size))
