"""LLaVA-NeXT: CLIP tiles, a two-layer projector, anyres packing, a Llama, Mistral or Qwen2 language model."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ptp.bundle.manifest import Tiling
from ptp.errors import CheckpointError
from ptp.export.adapters.base import TileEncoder
from ptp.export.language import EarlyBlocks
from ptp.ptp_graph.saliency import cls_attention

LANGUAGE_MODELS = ("llama", "mistral", "qwen2")
VISION_TOWERS = ("clip_vision_model",)
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters, by their numbers in `preprocessor_config.json`."""

MAX_GRIDS, MAX_GRID_SIDE = 1024, 1024
"""What a manifest can describe."""

MAX_VISUAL_TOKENS = 1 << 18
"""Of one image, unpruned: 91 times LLaVA-NeXT's."""

MAX_TILE_VALUES = 1 << 25
"""Pixels of all tiles of one image, times three: 19 times LLaVA-NeXT's."""


class ClipTileEncoder(TileEncoder):
    """CLIP vision tower up to the feature layer, with the CLS attention of one block on the way.

    Args:
        model: transformers' `LlavaNextModel`.
        saliency_layer: 0-based block whose CLS attention is the token saliency.
    """

    def __init__(self, model: Any, saliency_layer: int) -> None:
        super().__init__()
        tower = model.vision_tower
        depth = tower.config.num_hidden_layers
        layers = model.config.vision_feature_layer
        # indices into hidden_states: 0 is the embedding, k the output of block k − 1
        self.feature_layers = [k % (depth + 1) for k in ([layers] if isinstance(layers, int) else layers)]
        self.saliency_layer = saliency_layer
        self.embeddings = tower.embeddings
        self.pre_norm = tower.pre_layrnorm
        self.blocks = nn.ModuleList(tower.encoder.layers[: max(*self.feature_layers, saliency_layer)])
        self.saliency_block = tower.encoder.layers[saliency_layer]
        self.projector = model.multi_modal_projector
        self.image_newline = model.image_newline

    def encode(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TileEncoder.encode`."""
        hidden = self.pre_norm(self.embeddings(tiles))  # (n, 1 + N, C)
        states = [hidden]
        for block in self.blocks:
            hidden = block(hidden, None)
            states.append(hidden)
        features = torch.cat([states[k] for k in self.feature_layers], dim=-1)
        return features[:, 1:], self._saliency(states[self.saliency_layer]), features[:, 0]

    def _saliency(self, hidden: Tensor) -> Tensor:
        attention = self.saliency_block.self_attn
        hidden = self.saliency_block.layer_norm1(hidden)
        query = self._heads(attention.q_proj(hidden[:, :1]) * attention.scale, attention)
        return cls_attention(query, self._heads(attention.k_proj(hidden), attention))

    @staticmethod
    def _heads(x: Tensor, attention: Any) -> Tensor:
        return x.reshape(*x.shape[:2], attention.num_heads, attention.head_dim).transpose(1, 2)  # (n, heads, s, d)

    def project(self, features: Tensor) -> Tensor:
        """See `TileEncoder.project`."""
        projected: Tensor = self.projector(features)
        return projected

    @property
    def newline(self) -> Tensor:
        """See `TileEncoder.newline`."""
        newline: Tensor = self.image_newline
        return newline


class LlavaNext:
    """Adapter of `LlavaNextForConditionalGeneration` (implements `Adapter`)."""

    @staticmethod
    def load_class() -> Any:
        """See `Adapter.load_class`."""
        return LlavaNextForConditionalGeneration

    @staticmethod
    def load_processor(folder: Path, tokenizer: Any) -> Any:
        """See `Adapter.load_processor`."""
        images = LlavaNextImageProcessorPil.from_pretrained(folder)
        return LlavaNextProcessor.from_pretrained(folder, image_processor=images, tokenizer=tokenizer)

    @staticmethod
    def check(config: Any) -> None:
        """See `Adapter.check`."""
        text, vision = config.text_config.model_type, config.vision_config.model_type
        if text not in LANGUAGE_MODELS:
            raise CheckpointError(f"language model {text!r} is not supported", expected=" or ".join(LANGUAGE_MODELS))
        if vision not in VISION_TOWERS:
            raise CheckpointError(f"vision tower {vision!r} is not supported", expected=" or ".join(VISION_TOWERS))
        if config.vision_feature_select_strategy != "default":
            raise CheckpointError(
                "vision_feature_select_strategy is not supported",
                got=config.vision_feature_select_strategy,
                expected="default",
            )
        size, pinpoints = config.vision_config.image_size, config.image_grid_pinpoints
        if not isinstance(pinpoints, list | tuple) or not 1 <= len(pinpoints) <= MAX_GRIDS:
            raise CheckpointError(
                "image_grid_pinpoints is no list of sizes", got=str(pinpoints)[:80], expected=f"1 to {MAX_GRIDS} sizes"
            )
        if odd := [pair for pair in pinpoints if not _is_grid(pair, size)]:
            raise CheckpointError(
                "image_grid_pinpoints must be multiples of image_size",
                got=str(odd)[:80],
                expected=f"pairs of multiples of {size}, at most {MAX_GRID_SIDE} times",
            )

    @staticmethod
    def tiling(config: Any, image_processor: Any) -> Tiling:
        """See `Adapter.tiling`."""
        size = config.vision_config.image_size
        sides = _sides(image_processor.size), _sides(image_processor.crop_size)
        pinpoints = [list(pair) for pair in image_processor.image_grid_pinpoints or ()]
        if sides != (size, size) or pinpoints != [list(pair) for pair in config.image_grid_pinpoints]:
            raise CheckpointError(
                "the image processor does not match the model",
                got=f"size {sides[0]}, crop {sides[1]}, pinpoints {str(pinpoints)[:120]}",
                expected=f"size {size}, crop {size}, pinpoints {config.image_grid_pinpoints}",
                do="correct preprocessor_config.json",
            )
        switches = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
        off = [name for name in switches if getattr(image_processor, name) is not True]
        if off:
            raise CheckpointError(
                "the image processor leaves steps out", got=f"{', '.join(off)} off", expected="all on"
            )
        grids = tuple((height // size, width // size) for height, width in pinpoints)
        tiles, side = 1 + max(rows * columns for rows, columns in grids), size // config.vision_config.patch_size
        for what, number, most in (
            ("visual tokens", tiles * side**2, MAX_VISUAL_TOKENS),
            ("pixels, times three,", tiles * 3 * size**2, MAX_TILE_VALUES),
        ):
            if number > most:
                raise CheckpointError(f"an image has too many {what} in {tiles} tiles", got=number, expected=most)
        return Tiling(
            tile_size=size,
            tokens_per_side=side,
            max_tiles=tiles,
            grids=grids,
            resample=_resample(image_processor.resample),
            rescale_factor=_positive(image_processor.rescale_factor, "rescale_factor"),
            mean=_channels(image_processor.image_mean, "image_mean"),
            std=tuple(_positive(x, "image_std") for x in _channels(image_processor.image_std, "image_std")),
        )

    @staticmethod
    def saliency_layer(config: Any) -> int:
        """Return the paper's 11th block of 24, at other depths the block at the same fraction (docs/algorithm.md)."""
        depth: int = config.vision_config.num_hidden_layers
        return max(0, round(11 / 24 * depth) - 1)

    @staticmethod
    def build_encoder(model: Any, saliency_layer: int) -> TileEncoder:
        """See `Adapter.build_encoder`."""
        return ClipTileEncoder(model.model, saliency_layer)

    @staticmethod
    def build_early_blocks(model: Any) -> EarlyBlocks:
        """See `Adapter.build_early_blocks`."""
        return EarlyBlocks(model.model.language_model)


def _is_grid(pair: Any, size: int) -> bool:
    """Return whether it is the height and width of a grid of tiles."""
    return (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(type(x) is int and 1 <= x // size <= MAX_GRID_SIDE and x % size == 0 for x in pair)
    )


def _sides(size: Any) -> Any:
    """Return the one side that an image processor's size has in whatever form; None where it has none, or two."""
    sides = {getattr(size, name, None) for name in ("shortest_edge", "longest_edge", "height", "width")} - {None}
    return sides.pop() if len(sides) == 1 else None


def _resample(number: Any) -> Any:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(RESAMPLING):
        raise _unusable("resample", number, f"0 to {len(RESAMPLING) - 1}, a filter of Pillow")
    return RESAMPLING[number]


def _channels(value: Any, name: str) -> tuple[float, float, float]:
    """Return three numbers; one number is that of each channel, as transformers takes it."""
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(_is_number(x) for x in values):
        raise _unusable(name, value, "a number, or one for each of 3 channels")
    return values[0], values[1], values[2]


def _positive(value: Any, name: str) -> float:
    if not _is_number(value) or value <= 0:
        raise _unusable(name, value, "a number above 0")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unusable(name: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the image processor's {name} cannot be used",
        got=str(value)[:80],
        expected=expected,
        do="correct preprocessor_config.json",
    )
