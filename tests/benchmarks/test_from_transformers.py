"""A view built from transformers' model holds what transformers itself computes."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

from ptp.anyres import choose_grid
from ptp.benchmarks.methods import METHODS
from ptp.benchmarks.methods.from_transformers import view_from_transformers
from ptp.errors import ConfigError


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2"])
def asked(request, tiny_checkpoint):
    """Model, processor output and view of one image and question."""
    folder = tiny_checkpoint(request.param)
    model = LlavaNextForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    text = "<s>[INST] <image>\nWhat is in the picture? [/INST]"
    inputs = processor(text=text, images=Image.fromarray(pixels), return_tensors="pt")
    return model, inputs, view_from_transformers(model, inputs)


def test_a_view_is_what_transformers_computes(asked):
    model, inputs, view = asked
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        tower = model.model.vision_tower
        seen = tower(inputs["pixel_values"][0], output_attentions=True, output_hidden_states=True)
        answer = model(**inputs, output_attentions=True)
        features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
        last_two = [
            (layer.self_attn, layer.layer_norm1(state))
            for layer, state in zip(tower.encoder.layers[-2:], seen.hidden_states[-3:-1], strict=True)
        ]
        keys = last_two[0][0].k_proj(last_two[0][1]).unflatten(-1, (4, 12)).mean(dim=2)
        logits = {}
        for number, (attention, state) in enumerate(last_two, start=10):
            q, k = (getattr(attention, name)(state).unflatten(-1, (4, 12)) for name in ("q_proj", "k_proj"))
            logits[number] = (q[:, :1] * k).sum(dim=-1).mean(dim=-1) / 12**0.5
    assert (view.image_size, view.side, view.depth) == ((90, 140), 4, 12)
    assert view.grid == choose_grid(90, 140, ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)), 56)
    assert sorted(view.cls_attention) == [0, 10, 11]
    image = inputs["input_ids"][0] == model.config.image_token_id
    assert int(image.sum()) == len(view.sequence)
    close = {"rtol": 1e-5, "atol": 1e-6}
    for layer, values in view.cls_attention.items():
        np.testing.assert_allclose(values, seen.attentions[layer][:, :, 0, 1:].mean(dim=1), **close)
    np.testing.assert_allclose(view.question_attention, answer.attentions[1][0, :, -1].mean(dim=0)[image], **close)
    np.testing.assert_allclose(view.keys, keys[:, 1:], **close)
    for layer, values in logits.items():
        np.testing.assert_allclose(view.logits(layer), values[:, 1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(view.hidden, seen.hidden_states[-2][:, 1:], **close)
    np.testing.assert_allclose(view.features, features, **close)
    np.testing.assert_array_equal(
        view.text_embeds, model.get_input_embeddings()(inputs["input_ids"][0][~image]).detach()
    )


def test_the_projector_of_a_view_makes_its_features(asked):
    _, _, view = asked
    projected = view.project(view.at(view.positions, view.hidden))
    np.testing.assert_allclose(projected, view.features[view.positions], rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(tiny_checkpoint, asked):
    _, inputs, _ = asked
    model = LlavaNextForConditionalGeneration.from_pretrained(tiny_checkpoint("llama")).eval()
    parts = (model.model.vision_tower, model.model.language_model)
    before = [(part.config._attn_implementation, part.config.num_hidden_layers) for part in parts]
    hooks = []
    for _ in range(2):  # transformers leaves hooks of its own on the first call
        view_from_transformers(model, inputs, layers=(3,))
        hooks.append([len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()])
    assert [(part.config._attn_implementation, part.config.num_hidden_layers) for part in parts] == before
    assert hooks[0] == hooks[1]


def test_every_method_runs_on_a_view_of_transformers(asked):
    _, _, view = asked
    for method in METHODS.values():
        assert len(method.choose(view, 11).positions) == 11


def test_a_view_is_of_one_unpadded_prompt(asked):
    model, inputs, _ = asked
    with pytest.raises(ConfigError, match="one image and one prompt"):
        view_from_transformers(model, inputs | {"input_ids": inputs["input_ids"].repeat(2, 1)})
    with pytest.raises(ConfigError, match="padded"):
        view_from_transformers(model, inputs | {"attention_mask": torch.zeros_like(inputs["attention_mask"])})
    with pytest.raises(ConfigError, match="no place for this image"):
        view_from_transformers(model, inputs | {"input_ids": inputs["input_ids"][:, :-20]})
