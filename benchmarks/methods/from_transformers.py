"""Build a `View` from transformers' own model: one image, one prompt, nothing pruned."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from ptp.benchmarks.methods.view import Floats, View
from ptp.errors import ConfigError

QUESTION_BLOCK = 1
"""The language model's second block, 0-based: where FastV and PTP look."""


def view_from_transformers(model: Any, inputs: Mapping[str, Any], *, layers: Sequence[int] = (0, -2, -1)) -> View:
    """Run the vision encoder, and two blocks of the language model.

    Args:
        model: loaded `LlavaNextForConditionalGeneration`; on a GPU or the CPU, in any float type.
        inputs: what its processor makes of one image and one prompt, as torch tensors, without padding.
        layers: vision blocks whose CLS attention methods ask for; negative counts from the last.

    Raises:
        ConfigError: not one image and one prompt, or a checkpoint whose packed sequence holds CLS tokens.
    """
    if len(inputs["input_ids"]) != 1:
        raise ConfigError("a view is of one image and one prompt", got=f"{len(inputs['input_ids'])} prompts")
    if not bool(inputs["attention_mask"].all()):
        raise ConfigError("the prompt is padded", do="process it without padding")
    return with_prompt(model, view_of_image(model, inputs, layers=layers), inputs["input_ids"][0])


@torch.inference_mode()
def view_of_image(model: Any, inputs: Mapping[str, Any], *, layers: Sequence[int] = (0, -2, -1)) -> View:
    """Run the vision encoder alone: what methods that do not see the question ask for.

    Args:
        model: see `view_from_transformers`.
        inputs: what the image processor makes of one image, as torch tensors.
        layers: see `view_from_transformers`.

    Raises:
        ConfigError: not one image, or a checkpoint whose packed sequence holds CLS tokens.
    """
    config, blocks = model.config, model.model.vision_tower.encoder.layers
    if len(inputs["image_sizes"]) != 1:
        raise ConfigError("a view is of one image and one prompt", got=f"{len(inputs['image_sizes'])} images")
    if config.vision_feature_select_strategy != "default":
        raise ConfigError(
            "the packed sequence would hold CLS tokens", got=config.vision_feature_select_strategy, expected="default"
        )
    size = inputs["image_sizes"][0]
    with _watched(model, {layer % len(blocks) for layer in layers}) as seen:
        pixels = inputs["pixel_values"].to(model.device, model.dtype)
        features = model.get_image_features(pixels, inputs["image_sizes"]).pooler_output[0]
    rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)

    @torch.inference_mode()
    def project(hidden: Floats) -> Floats:
        return _numpy(model.model.multi_modal_projector(torch.from_numpy(hidden).to(model.device, model.dtype)))

    return View(
        image_size=(int(size[0]), int(size[1])),
        grid=(rows, columns),
        side=config.vision_config.image_size // config.vision_config.patch_size,
        depth=len(blocks),
        features=_numpy(features),
        cls_attention=seen["attention"],
        cls_logits={
            layer: _cls_logits(blocks[layer].self_attn, queries, seen["keys"][layer])
            for layer, queries in seen["queries"].items()
        },
        keys=_numpy(_heads(blocks[-2].self_attn, seen["keys"][len(blocks) - 2])[:, 1:].mean(dim=2)),
        hidden=_numpy(seen["hidden"]),
        project=project,
    )


@torch.inference_mode()
def with_prompt(model: Any, view: View, ids: torch.Tensor) -> View:
    """Add what methods that see the question ask for: two blocks of the language model, over the whole sequence.

    Args:
        model: see `view_from_transformers`.
        view: of the image.
        ids: (S,) token ids of the prompt, M of them image tokens.

    Raises:
        ConfigError: the prompt has no place for this image.
    """
    language, ids = model.model.language_model, ids.to(model.device)
    image = ids == model.config.image_token_id
    if int(image.sum()) != len(view.features):
        raise ConfigError("the prompt has no place for this image", got=int(image.sum()), expected=len(view.features))
    embeds = language.get_input_embeddings()(ids)
    text = _numpy(embeds[~image])
    embeds = embeds.masked_scatter(image[:, None], torch.from_numpy(view.features).to(embeds))
    seen: dict[str, torch.Tensor] = {}

    def take(_: Any, __: Any, output: Any) -> None:
        seen["row"] = output[1][0, :, -1].float().mean(dim=0)

    attention = language.layers[QUESTION_BLOCK].self_attn
    layers, language.config.num_hidden_layers = language.config.num_hidden_layers, QUESTION_BLOCK + 1
    try:
        with _eager(language), _hooks([attention.register_forward_hook(take)]):
            language(inputs_embeds=embeds[None], use_cache=False)
    finally:
        language.config.num_hidden_layers = layers
    return replace(view, text_embeds=text, question_attention=_numpy(seen["row"][image]))


@contextmanager
def _watched(model: Any, layers: set[int]) -> Iterator[dict[str, Any]]:
    """Yield what the vision encoder and the projector see: CLS attention, queries and keys by block, hidden states.

    Each attention is cut down to its CLS row in the hook; all of them at once would be gigabytes.
    """
    blocks = model.model.vision_tower.encoder.layers
    seen: dict[str, Any] = {"attention": {}, "queries": {}, "keys": {}}

    def keep_cls(layer: int) -> Any:
        def take(_: Any, __: Any, output: Any) -> None:
            seen["attention"][layer] = _numpy(output[1][:, :, 0, 1:].float().mean(dim=1))

        return take

    def keep(name: str, layer: int) -> Any:
        return lambda _, __, output: seen[name].update({layer: output})

    hooks = [blocks[layer].self_attn.register_forward_hook(keep_cls(layer)) for layer in layers]
    hooks += [blocks[layer].self_attn.q_proj.register_forward_hook(keep("queries", layer)) for layer in layers]
    with_keys = layers | {len(blocks) - 2}
    hooks += [blocks[layer].self_attn.k_proj.register_forward_hook(keep("keys", layer)) for layer in with_keys]
    projector = model.model.multi_modal_projector
    hooks.append(projector.register_forward_pre_hook(lambda _, given: seen.update(hidden=given[0])))
    with _eager(model.model.vision_tower), _hooks(hooks):
        yield seen


@contextmanager
def _hooks(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Use the one form of attention that returns its weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _cls_logits(attention: Any, queries: torch.Tensor, keys: torch.Tensor) -> Floats:
    """Return q · k / √d of CLS with the patches, mean over the heads, (tiles, N)."""
    cls = _heads(attention, queries)[:, 0] * attention.scale  # (tiles, heads, d)
    return _numpy(torch.einsum("thd,tnhd->tn", cls, _heads(attention, keys)[:, 1:]) / cls.shape[1])


def _heads(attention: Any, rows: torch.Tensor) -> torch.Tensor:
    return rows.float().view(*rows.shape[:-1], -1, attention.head_dim)  # (tiles, 1 + N, heads, d)


def _numpy(tensor: torch.Tensor) -> Floats:
    values: Floats = tensor.float().cpu().numpy()
    return values
