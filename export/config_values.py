"""Bounds on a checkpoint's configuration: what no model has is refused before anything is made of it."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, TypeGuard

from ptp.bundle.manifest import MAX_DIMENSION
from ptp.errors import CheckpointError

MAX_LAYERS = 512
MAX_VOCABULARY = MAX_DIMENSION
MAX_POSITIONS = 1 << 31
MAX_SIDE = 4096
"""Pixels on a side of a tile."""

MAX_TOKENS_PER_SIDE = 1024

TEXT_SIZES = {
    "hidden_size": MAX_DIMENSION,
    "intermediate_size": MAX_DIMENSION,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": MAX_DIMENSION,
    "num_key_value_heads": MAX_DIMENSION,
    "vocab_size": MAX_VOCABULARY,
    "max_position_embeddings": MAX_POSITIONS,
}
VISION_SIZES = {
    "hidden_size": MAX_DIMENSION,
    "intermediate_size": MAX_DIMENSION,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": MAX_DIMENSION,
    "image_size": MAX_SIDE,
    "patch_size": MAX_SIDE,
}

ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
"""Rotary embeddings whose frequencies do not depend on the length of the text, and the numbers that each needs."""


def check_sizes(data: Any) -> None:
    """Refuse sizes of no model before transformers sees them: it makes lists of that length.

    Args:
        data: `config.json`; what it does not say is transformers' default.

    Raises:
        CheckpointError: all such sizes.
    """
    problems: list[str] = []
    for name, bounds in (("text_config", TEXT_SIZES), ("vision_config", VISION_SIZES)):
        part = data.get(name)
        stated = {key: part[key] for key in bounds if type(part.get(key)) is int} if isinstance(part, dict) else {}
        problems += _sizes(SimpleNamespace(**stated), name, {key: bounds[key] for key in stated})
    _refuse(problems)


def check_values(config: Any) -> None:
    """Refuse a configuration with values that no model can have.

    Args:
        config: transformers' configuration of a vision-language model.

    Raises:
        CheckpointError: all such values.
    """
    problems = [*_sizes(config.text_config, "text_config", TEXT_SIZES)]
    problems += _sizes(config.vision_config, "vision_config", VISION_SIZES)
    if not problems:
        problems = [*_relations(config), *_feature_layers(config), *_rope(config.text_config)]
    if getattr(config, "quantization_config", None) or getattr(config.text_config, "quantization_config", None):
        problems.append("quantization_config: quantised checkpoints are not read")
    _refuse(problems)


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            "config.json describes a model that cannot be exported", got="; ".join(problems[:4]) + more
        )


def _is_size(value: Any) -> bool:
    return value is None or (_is_integer(value) and value >= 1)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _sizes(part: Any, name: str, bounds: dict[str, int]) -> Iterator[str]:
    for key, most in bounds.items():
        value = getattr(part, key, None)
        if not _is_integer(value) or not 1 <= value <= most:
            yield f"{name}.{key} is {str(value)[:40]}, not 1 to {most}"


def _relations(config: Any) -> Iterator[str]:
    text, vision = config.text_config, config.vision_config
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None:
        if text.hidden_size % text.num_attention_heads:
            yield f"text_config: {text.num_attention_heads} heads do not divide hidden_size {text.hidden_size}"
    elif not _is_integer(head_dim) or not 1 <= head_dim <= MAX_DIMENSION:
        yield f"text_config.head_dim is {str(head_dim)[:40]}, not 1 to {MAX_DIMENSION}"
    if text.num_attention_heads % text.num_key_value_heads:
        yield f"text_config: {text.num_key_value_heads} KV heads do not divide {text.num_attention_heads} heads"
    if vision.hidden_size % vision.num_attention_heads:
        yield f"vision_config: {vision.num_attention_heads} heads do not divide hidden_size {vision.hidden_size}"
    if vision.image_size % vision.patch_size or vision.image_size // vision.patch_size > MAX_TOKENS_PER_SIDE:
        yield (
            f"vision_config.image_size {vision.image_size} is not 1 to {MAX_TOKENS_PER_SIDE} times "
            f"patch_size {vision.patch_size}"
        )
    if not _is_size(window := getattr(text, "sliding_window", None)):
        yield f"text_config.sliding_window is {str(window)[:40]}, not 1 or more"
    for name, eps in (("text_config.rms_norm_eps", text.rms_norm_eps), ("layer_norm_eps", vision.layer_norm_eps)):
        if not (isinstance(eps, float) and math.isfinite(eps) and eps > 0):
            yield f"{name} is {str(eps)[:40]}, not a number above 0"
    if getattr(vision, "num_channels", 3) != 3:
        yield f"vision_config.num_channels is {str(vision.num_channels)[:40]}, not 3"
    if not _is_integer(config.image_token_id) or not 0 <= config.image_token_id < text.vocab_size:
        yield f"image_token_index is {str(config.image_token_id)[:40]}, not below vocab_size {text.vocab_size}"


def _feature_layers(config: Any) -> Iterator[str]:
    layers, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    listed = list(layers) if isinstance(layers, list | tuple) else [layers]
    if not 1 <= len(listed) <= depth + 1 or not all(_is_integer(k) and -depth - 1 <= k <= depth for k in listed):
        yield f"vision_feature_layer is {str(layers)[:40]}, not of {-depth - 1} to {depth}"


def _rope(text: Any) -> Iterator[str]:
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, dict):
        yield f"text_config.rope_parameters is {str(rope)[:40]}"
        return
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        known = ", ".join(ROPE_TYPES)
        yield f"rope_type is {str(kind)[:40]!r}, whose frequencies change with the length; supported are {known}"
        return
    # Llama's own default form does not read it
    if kind != "default" and (partial := rope.get("partial_rotary_factor")) not in (None, 1):
        yield f"rope_parameters.partial_rotary_factor is {str(partial)[:40]}, not 1"
    if kind == "llama3" and rope.get("low_freq_factor") == rope.get("high_freq_factor"):
        yield f"rope_parameters.high_freq_factor is {str(rope.get('high_freq_factor'))[:40]}, not above low_freq_factor"
    for key in ("rope_theta", *ROPE_TYPES[kind]):
        value = rope.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            yield f"rope_parameters.{key} is {str(value)[:40]}, not a number above 0"
