"""The formulas beside the scaling curves, against what torch counts; the curves' arithmetic."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from ptp.benchmarks.scaling import MODEL, curve, decode_bytes, draw, medians, prefill_flops, tile_flops, vision_flops


def counted(model, **inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def language_model():
    config = LlamaConfig(
        hidden_size=MODEL.hidden,
        intermediate_size=MODEL.intermediate,
        num_hidden_layers=MODEL.layers,
        num_attention_heads=MODEL.heads,
        num_key_value_heads=MODEL.kv_heads,
        vocab_size=MODEL.vocab,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        return LlamaModel(config).eval()


@pytest.mark.parametrize("tokens", [7, 300])
def test_prefill(language_model, tokens):
    embeds = torch.zeros(1, tokens, MODEL.hidden, device="meta")
    assert counted(language_model, inputs_embeds=embeds) == prefill_flops(tokens)


def test_a_tile():
    config = CLIPVisionConfig(
        hidden_size=MODEL.vision_hidden,
        intermediate_size=MODEL.vision_intermediate,
        num_hidden_layers=MODEL.vision_layers - 1,
        num_attention_heads=MODEL.vision_heads,
        image_size=MODEL.tile,
        patch_size=MODEL.patch,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = CLIPVisionModel(config).eval()
    assert counted(model, pixel_values=torch.zeros(1, 3, MODEL.tile, MODEL.tile, device="meta")) == tile_flops()


def test_the_vision_graph_grows_faster_than_its_tiles():
    steps = [vision_flops(n + 1) - vision_flops(n) for n in (1, 10, 40)]
    assert steps == sorted(steps)
    assert steps[0] > tile_flops()


def test_a_step_reads_weights_and_cache(language_model):
    weights = sum(x.numel() for x in language_model.parameters() if x.dim() == 2)
    assert decode_bytes(0) == 4 * weights  # the embedding's size is the output layer's
    assert decode_bytes(100) - decode_bytes(0) == 4 * 2 * MODEL.layers * 100 * MODEL.hidden


def test_a_curve_meets_its_prediction_at_the_largest_point(tmp_path):
    found = curve("c", "flops", {1: 5.0, 4: 8.0, 2: 3.0}, {1: 10.0, 2: 20.0, 4: 40.0})
    assert found.predicted_ms == [2.0, 8.0, 4.0]
    draw([found, found], "tokens", tmp_path / "a.svg")
    draw([found, found], "tokens", tmp_path / "b.svg")
    assert "predicted by flops" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_points_take_turns():
    order = []
    medians({1: lambda: order.append(1), 2: lambda: order.append(2)}, 2)
    assert order == [1, 2] * 3
