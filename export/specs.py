"""Inputs and outputs of the graphs: names, types, shapes. Tracer, lint, gates and manifest all read them here.

The names are those that transformers.js, optimum and ONNX Runtime GenAI use, so that other loaders find them.
"""

from dataclasses import dataclass

from ptp.bundle.manifest import Dtype, Instruction, LanguageModel, Precision, TensorSpec
from ptp.ptp_graph.schedule import Schedule

FLOAT: dict[Precision, Dtype] = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True, kw_only=True)
class GraphIO:
    """Inputs and outputs of a graph, and the inner values (`probes`) that its gate looks at."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probes: tuple[TensorSpec, ...] = ()


def _tensor(name: str, dtype: Dtype, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def vision_io(
    schedule: Schedule,
    *,
    instruction: Instruction,
    precision: Precision,
    tile_size: int,
    hidden_size: int,
    max_prompt: int,
    batch: int = 1,
) -> GraphIO:
    """Return the contract of `vision_encoder.onnx`; every dimension is a number, but for a K chosen at run time."""
    floats, tiles = FLOAT[precision], schedule.num_tiles
    kept: int | str = "num_kept" if schedule.keep_range else schedule.num_kept
    inputs = [
        _tensor("pixel_values", floats, batch, tiles, 3, tile_size, tile_size),
        _tensor("image_sizes", "int64", batch, 2),
        _tensor("tile_grid", "int64", batch, 2),
    ]
    probes = [
        _tensor("token_saliency", "float32", batch, tiles, schedule.tokens_per_tile),
        _tensor("region_weights", "float32", batch, tiles),
    ]
    if instruction != "none":
        inputs += [
            _tensor("alpha", "float32", batch),
            _tensor("prompt_embeds", floats, batch, max_prompt, hidden_size),
            _tensor("prompt_mask", "bool", batch, max_prompt),
            _tensor("question_mask", "bool", batch, max_prompt),
            _tensor("prefix_length", "int64", batch),
        ]
        probes.append(_tensor("relevance", "float32", batch, tiles, schedule.tokens_per_tile))
    if schedule.keep_range:
        inputs.append(_tensor("num_kept", "int64", 1))
    outputs = [
        _tensor("image_features", floats, batch, kept, hidden_size),
        _tensor("image_positions", "int64", batch, kept),
        _tensor("num_valid", "int64", batch),
        _tensor("tile_budgets", "int32", batch, tiles),
        _tensor("packed_length", "int64", batch),
    ]
    if instruction != "none":
        outputs.append(_tensor("effective_alpha", "float32", batch))
    return GraphIO(inputs=tuple(inputs), outputs=tuple(outputs), probes=tuple(probes))


def embed_io(model: LanguageModel, precision: Precision) -> GraphIO:
    """Return the contract of `embed_tokens.onnx`."""
    return GraphIO(
        inputs=(_tensor("input_ids", "int64", "batch_size", "sequence_length"),),
        outputs=(_tensor("inputs_embeds", FLOAT[precision], "batch_size", "sequence_length", model.hidden_size),),
    )


def decoder_io(model: LanguageModel, precision: Precision) -> GraphIO:
    """Return the contract of `decoder_model_merged.onnx`."""
    return _decoder_io(model, precision, "batch_size", past="past_sequence_length", present="total_sequence_length")


def fused_decoder_io(model: LanguageModel, precision: Precision) -> GraphIO:
    """Return the contract of `decoder_onnxruntime.onnx`: one sequence, a cache of a length of its own."""
    return _decoder_io(model, precision, 1, past="cache_length", present="cache_length")


def _decoder_io(model: LanguageModel, precision: Precision, batch: int | str, *, past: str, present: str) -> GraphIO:
    floats = FLOAT[precision]

    def cache(prefix: str, length: str) -> list[TensorSpec]:
        return [
            _tensor(f"{prefix}.{layer}.{part}", floats, batch, model.num_kv_heads, length, model.head_dim)
            for layer in range(model.num_layers)
            for part in ("key", "value")
        ]

    return GraphIO(
        inputs=(
            _tensor("inputs_embeds", floats, batch, "sequence_length", model.hidden_size),
            _tensor("attention_mask", "int64", batch, "total_sequence_length"),
            _tensor("position_ids", "int64", batch, "sequence_length"),
            *cache("past_key_values", past),
        ),
        outputs=(
            _tensor("logits", "float32", batch, 1, model.vocab_size),
            _tensor("next_tokens", "int64", batch, 1),
            _tensor("next_attention_mask", "int64", batch, "next_sequence_length"),
            _tensor("next_position_ids", "int64", batch, 1),
            *cache("present", present),
        ),
    )
