"""Sizes before anything is loaded: parameters counted on the meta device, memory estimated from them."""

from dataclasses import dataclass
from typing import Any

import torch

from ptp.engines import memory, tensorrt
from ptp.engines.memory import Block
from ptp.engines.profiles import NEW_TOKENS
from ptp.engines.targets import TARGETS
from ptp.export.checkpoint import DTYPES, Checkpoint
from ptp.export.decoder import DecoderGraph, EmbedGraph
from ptp.export.plan import Plan
from ptp.export.quantization import quantized_bytes, weight_type
from ptp.export.vision import build_vision_graph
from ptp.export.weights import IN_MEMORY, empty_model

BASE_BYTES = 750 << 20
"""Python with torch, transformers, onnx and ONNX Runtime imported, and a traced graph."""

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
        board_build: estimated peak of building the larger engine on a Jetson.
        board_run: estimated peak of a run of both engines there.
    """

    vision: int
    embed: int
    decoder: int
    cache: int
    export: int
    run: int
    board_build: int
    board_run: int


def estimate(plan: Plan, checkpoint: Checkpoint) -> Sizes:
    """Estimate sizes from the configuration alone.

    An export writes weights one at a time. The model that the graphs are compared with computes in float32; it holds
    all its weights if they are few, and otherwise the one in use. Beside it come, one after the other, ONNX Runtime
    with the vision graph and its activations, and TensorRT-RTX's builder, in a process of its own, where that is
    installed. ONNX Runtime keeps float32 weights once more, laid out for its products; float16 ones are widened one at
    a time in the gates' sessions and all at once in a run's. A run holds all weights, the cache and the encoder's
    activations.
    """
    model = empty_model(checkpoint.adapter.load_class(), checkpoint.config)
    vision, embed, decoder = (
        _written(module, plan)
        for module in (
            build_vision_graph(plan, checkpoint, model),
            EmbedGraph(model),
            DecoderGraph(model),
        )
    )
    text = plan.language_model
    tokens = plan.config.max_prompt + plan.schedule.num_kept_range[1]
    cache = memory.cache_bytes(text, plan.config.precision, tokens)
    activations = _vision_activations(plan, checkpoint)
    half = plan.config.precision == "fp16"
    held = torch.float32.itemsize * _parameters(model)
    if held > IN_MEMORY:
        held = torch.float32.itemsize * max(parameter.numel() for parameter in model.parameters())
    parity = (1 if half else 2) * vision + activations
    build = memory.builder_bytes(vision) if tensorrt.is_installed("tensorrt-rtx") else 0
    board_build, board_run = _board_memory(plan, checkpoint, (vision, embed, decoder))
    return Sizes(
        vision=vision,
        embed=embed,
        decoder=decoder,
        cache=cache,
        export=BASE_BYTES + held + max(parity, build),
        run=RUNTIME_BASE_BYTES + (3 if half else 1) * (vision + embed + decoder) + cache + activations,
        board_build=board_build,
        board_run=board_run,
    )


def _board_memory(plan: Plan, checkpoint: Checkpoint, sizes: tuple[int, int, int]) -> tuple[int, int]:
    """Return the bytes that a Jetson needs to build the largest engine, and to run all; `sizes` are the weights'."""
    vision, embed, decoder = sizes
    precision, tokens = plan.config.precision, plan.config.max_prompt + plan.schedule.num_kept_range[1]
    scores = memory.keeps_scores(precision)
    board = next(target for target in TARGETS.values() if target.memory_bytes)
    visual = memory.engine_estimate(
        board,
        "visual",
        weights=vision,
        activations=_vision_activations(plan, checkpoint, scores=scores),
        cache=0,
    )
    llm = memory.engine_estimate(
        board,
        "llm",
        weights=decoder,
        activations=memory.COMPUTED_BYTES * _block(checkpoint.config.text_config).values(tokens, scores=scores),
        cache=2 * memory.cache_bytes(plan.language_model, precision, tokens + NEW_TOKENS),
    )
    table = memory.engine_estimate(board, "embed", weights=embed, activations=0, cache=0)
    engines = (visual, table, llm)
    return max(x.build_bytes for x in engines), memory.run_total(engines)


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in {id(p): p for p in module.parameters()}.values())


def _written(graph: Any, plan: Plan) -> int:
    """Return the bytes of a graph's weights as they are written."""
    how, itemsize = plan.config.quantization, DTYPES[plan.config.precision].itemsize
    total = 0
    for name, parameter in graph.named_parameters():
        dtype = weight_type(name, how) if how else None
        if how and dtype:
            total += quantized_bytes(tuple(parameter.shape), dtype, how.block_size, itemsize)
        else:
            total += itemsize * parameter.numel()
    return total


def _vision_activations(plan: Plan, checkpoint: Checkpoint, *, scores: bool = True) -> int:
    """Return the bytes that the largest block holds at once in float32: attention of all heads, and the MLP."""
    config, options = checkpoint.config, plan.config
    return memory.COMPUTED_BYTES * memory.vision_values(
        _block(config.vision_config),
        _block(config.text_config) if options.instruction == "attention" else None,
        plan.tiling,
        batch=options.batch,
        max_prompt=options.max_prompt,
        scores=scores,
    )


def _block(config: Any) -> Block:
    return Block(width=config.hidden_size, heads=config.num_attention_heads, mlp=config.intermediate_size)
