"""What transformers itself computes for an image: features, attention, similarity. Shares no code with the graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """transformers' view of one image, unpruned.

    Attributes:
        features: (M, H) float32, `get_image_features`.
        token_saliency: (tiles, N) float32, CLS row of the eager attention, mean over heads.
        region_cosines: (tiles − 1,) float32, cosine of each crop's CLS with the thumbnail's.
        relevance: (tiles, N) float32, cosine with the question's embeddings, or None.
    """

    features: Array
    token_saliency: Array
    region_cosines: Array
    relevance: Array | None


def ask_transformers(
    model: Any,
    pixel_values: Array,
    image_size: tuple[int, int],
    *,
    saliency_layer: int,
    question_embeds: Array | None,
) -> Oracle:
    """Run transformers' own model on one image.

    Args:
        model: loaded `LlavaNextForConditionalGeneration`.
        pixel_values: (tiles, 3, S, S), real tiles only.
        image_size: height and width in pixels.
        saliency_layer: 0-based vision block.
        question_embeds: (questions, H) input embeddings of the question's tokens, or None.
    """
    pixels = torch.from_numpy(pixel_values).to(model.dtype)
    with torch.inference_mode(), _watched(model.model.vision_tower, saliency_layer) as seen:
        features = model.get_image_features(pixels[None], torch.tensor([image_size])).pooler_output[0]
        layers = model.config.vision_feature_layer
        states = [seen["hidden_states"][k] for k in ([layers] if isinstance(layers, int) else layers)]
        hidden = torch.cat(states, dim=-1).float()
        cls = torch.nn.functional.normalize(hidden[:, 0], dim=-1)
        relevance = None
        if question_embeds is not None:
            visual = model.model.multi_modal_projector(hidden[:, 1:].to(model.dtype)).double()
            visual = torch.nn.functional.normalize(visual, dim=-1)
            question = torch.nn.functional.normalize(torch.from_numpy(question_embeds).double(), dim=-1)
            relevance = torch.einsum("tnh,qh->tnq", visual, question).amax(dim=-1).float().numpy()
        return Oracle(
            features=features.float().numpy(),
            token_saliency=seen["attention"].float()[:, :, 0, 1:].mean(dim=1).numpy(),
            region_cosines=(cls[1:] @ cls[0]).numpy(),
            relevance=relevance,
        )


@contextmanager
def _watched(tower: Any, layer: int) -> Iterator[dict[str, Any]]:
    """Yield what the tower computes on its next call: `hidden_states`, and `attention` (tiles, heads, s, s) of a layer.

    Attention runs in its eager form, the only one that returns its weights. Hooks take those of the one layer:
    `output_attentions` would hold all layers' at once, 2.5 GiB for CLIP-L on five tiles.
    """
    seen: dict[str, Any] = {}
    hooks = [
        tower.register_forward_hook(lambda _, __, output: seen.update(hidden_states=output.hidden_states)),
        tower.encoder.layers[layer].self_attn.register_forward_hook(
            lambda _, __, output: seen.update(attention=output[1])
        ),
    ]
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        yield seen
    finally:
        tower.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
