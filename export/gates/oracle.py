"""What transformers itself computes for an image: features, attention, similarity. Shares no code with the graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from ptp.peak_memory import give_back

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt around the image.

    Attributes:
        embeds: (length, H) input embeddings of its text tokens, prefix then suffix.
        mask: (length,) bool, tokens of the user's question.
        prefix_length: how many tokens stand before the image.
    """

    embeds: Array
    mask: Array
    prefix_length: int


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """transformers' view of one image, unpruned.

    Attributes:
        features: (M, H) float32, `get_image_features`.
        token_saliency: (tiles, N) float32, CLS row of the eager attention, mean over heads.
        region_cosines: (tiles,) float32, cosine of each tile's CLS with the thumbnail's.
        similarity: (tiles, N) float32, largest cosine with the question's embeddings; None without a question.
        attention: (M,) float32, the question's attention at the second block, mean over heads, max over rows; None
            without a question.
    """

    features: Array
    token_saliency: Array
    region_cosines: Array
    similarity: Array | None
    attention: Array | None


def ask_transformers(
    model: Any, pixel_values: Array, image_size: tuple[int, int], *, saliency_layer: int, question: Question | None
) -> Oracle:
    """Run transformers' own model on one image.

    Args:
        model: loaded `LlavaNextForConditionalGeneration`.
        pixel_values: (tiles, 3, S, S), real tiles only.
        image_size: height and width in pixels.
        saliency_layer: 0-based vision block.
        question: the prompt, or None.
    """
    try:
        return _ask(model, pixel_values, image_size, saliency_layer, question)
    finally:
        give_back()


def _ask(
    model: Any, pixel_values: Array, image_size: tuple[int, int], saliency_layer: int, question: Question | None
) -> Oracle:
    pixels = torch.from_numpy(pixel_values).to(model.dtype)
    with torch.inference_mode():
        with _watched(model.model.vision_tower, model.model.vision_tower.encoder.layers[saliency_layer]) as seen:
            features = model.get_image_features(pixels[None], torch.tensor([image_size])).pooler_output[0]
        layers = model.config.vision_feature_layer
        states = [seen["output"].hidden_states[k] for k in ([layers] if isinstance(layers, int) else layers)]
        hidden = torch.cat(states, dim=-1)
        cls = normalize(hidden[:, 0].float(), dim=-1)
        visual = model.model.multi_modal_projector(hidden[:, 1:])
        return Oracle(
            features=features.float().numpy(),
            token_saliency=seen["attention"].float()[:, :, 0, 1:].mean(dim=1).numpy(),
            region_cosines=(cls @ cls[0]).numpy(),
            similarity=None if question is None else _similarity(visual, question),
            attention=None if question is None else _attention(model, features, question),
        )


def _similarity(visual: torch.Tensor, question: Question) -> Array:
    text = normalize(torch.from_numpy(question.embeds[question.mask]).double(), dim=-1, eps=1e-6)
    cosines = torch.einsum("tnh,qh->tnq", normalize(visual.double(), dim=-1, eps=1e-6), text)
    largest: Array = cosines.amax(dim=-1).float().numpy()
    return largest


def _attention(model: Any, features: torch.Tensor, question: Question) -> Array:
    """Return the attention of the full, unpruned sequence, as `output_attentions` gives it at index 1."""
    language, start = model.model.language_model, question.prefix_length
    text = torch.from_numpy(question.embeds)
    sequence = torch.cat([text[:start], features, text[start:]])
    rows = torch.nonzero(torch.from_numpy(question.mask)).flatten()
    rows = torch.where(rows < start, rows, rows + len(features))
    layers, language.config.num_hidden_layers = language.config.num_hidden_layers, 2
    try:
        with _watched(language, language.layers[1]) as seen:
            language(inputs_embeds=sequence[None], use_cache=False)
    finally:
        language.config.num_hidden_layers = layers
    attention = seen["attention"][0].float().mean(dim=0)  # (S, S), mean over heads
    largest: Array = attention[rows].amax(dim=0)[start : start + len(features)].numpy()
    return largest


@contextmanager
def _watched(model: Any, layer: Any) -> Iterator[dict[str, Any]]:
    """Yield what a model returns on its next call as `output`, and a layer's `attention` (batch, heads, s, s).

    Attention runs in its eager form, the only one that returns its weights. The hook takes those of the one layer:
    `output_attentions` would hold all layers' at once, 2.5 GiB for CLIP-L on five tiles.
    """
    seen: dict[str, Any] = {}
    hooks = [
        model.register_forward_hook(lambda _, __, output: seen.update(output=output)),
        layer.self_attn.register_forward_hook(lambda _, __, output: seen.update(attention=output[1])),
    ]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield seen
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
