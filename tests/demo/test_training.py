"""The training's own forward passes are the model's: whatever is learned there holds where transformers runs it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from ptp.demo import CHECKPOINT
from ptp.demo.decoder import RELEVANCE_BLOCK, hide, prepare, run_batch
from ptp.demo.encoder import LATE_BLOCK, SALIENCY_BLOCK, Heads, Seen, join_labels, see, to_tensor
from ptp.demo.pool import CLUTTER, DULL, FACTS, GLYPH, UNREADABLE, Sample, draw_practice_sample, draw_sample
from ptp.demo.task import make_scene
from ptp.demo.train import train
from ptp.errors import ConfigError
from ptp.export.adapters import adapter_for

SPLIT, INDEX = "validation", 2


@pytest.fixture(scope="module")
def sample() -> Sample:
    return draw_sample(SPLIT, INDEX)


@pytest.fixture(scope="module")
def model() -> LlavaNextForConditionalGeneration:
    return LlavaNextForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def eager() -> LlavaNextForConditionalGeneration:
    """Return the same model in the form that gives its attention away."""
    return LlavaNextForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def processor() -> LlavaNextProcessor:
    return LlavaNextProcessor.from_pretrained(CHECKPOINT)


def test_tiles_are_those_of_the_processor(processor: LlavaNextProcessor, sample: Sample) -> None:
    expected = processor.image_processor(make_scene(SPLIT, INDEX).image, return_tensors="pt")["pixel_values"][0]
    tiles = to_tensor(torch.from_numpy(sample.tiles))
    assert tiles.shape == expected[: len(tiles)].shape
    assert (tiles - expected[: len(tiles)]).abs().max() < 1e-5
    assert not expected[len(tiles) :].any()


@torch.inference_mode()
def test_features_and_saliency_are_the_encoders(
    model: LlavaNextForConditionalGeneration, eager: LlavaNextForConditionalGeneration, sample: Sample
) -> None:
    tiles = to_tensor(torch.from_numpy(sample.tiles))
    seen = see(model.model.vision_tower, tiles)
    whole = eager.model.vision_tower(tiles, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(seen.features, whole.hidden_states[-2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.saliency, whole.attentions[SALIENCY_BLOCK][:, :, 0, 1:].mean(1))
    torch.testing.assert_close(seen.late_saliency, whole.attentions[LATE_BLOCK][:, :, 0, 1:].mean(1))


@torch.inference_mode()
def test_answers_and_relevance_are_the_models(
    model: LlavaNextForConditionalGeneration,
    eager: LlavaNextForConditionalGeneration,
    processor: LlavaNextProcessor,
    sample: Sample,
) -> None:
    """All questions of a scene share one sequence; each comes out as if it were asked alone."""
    lesson = prepare(processor, sample)
    features = see(model.model.vision_tower, to_tensor(torch.from_numpy(sample.tiles))).features[:, 1:].flatten(0, 1)
    outcome = run_batch(model, [lesson], [features], [torch.ones(len(lesson.sources), dtype=torch.bool)])
    image, shares = make_scene(SPLIT, INDEX).image, []
    for number, (question, dialogue) in enumerate(zip(sample.questions, lesson.dialogues, strict=True)):
        content = [{"type": "image", "image": image}, {"type": "text", "text": question.text}]
        turns = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
        ]
        inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
        ids = inputs["input_ids"][0]
        assert ids[-dialogue.reply :].tolist() == dialogue.tokens[-dialogue.reply :]
        whole = eager(**inputs, output_attentions=True)
        expected = whole.logits[0, -dialogue.reply - 1 : -1]
        torch.testing.assert_close(outcome.logits[outcome.owner == number], expected, rtol=1e-3, atol=1e-3)
        if dialogue.targets:
            (visual,) = (ids == model.config.image_token_index).nonzero(as_tuple=True)
            rows = slice(int(visual[-1]) + 1 + dialogue.asked[0], int(visual[-1]) + 1 + dialogue.asked[1])
            relevance = whole.attentions[RELEVANCE_BLOCK][0].mean(0)[rows][:, visual].amax(0)
            wanted = torch.isin(lesson.shown, torch.tensor(dialogue.targets) + 1)
            if question.kind in ("digit", "letter"):
                wanted &= lesson.written
            shares.append(-(relevance[wanted].sum() / relevance.sum()).log())
    torch.testing.assert_close(outcome.attention, torch.stack(shares).mean(), rtol=1e-3, atol=1e-3)
    assert len(outcome.right) == len(sample.questions)


def test_the_taught_blocks_are_those_that_an_export_reads(model: LlavaNextForConditionalGeneration) -> None:
    adapter = adapter_for(model.config.model_type)
    assert adapter.saliency_layer(model.config) == SALIENCY_BLOCK
    assert LATE_BLOCK == model.config.vision_config.num_hidden_layers + model.config.vision_feature_layer


def test_hidden_tokens_are_as_if_they_were_not_there(
    model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, sample: Sample
) -> None:
    lesson = prepare(processor, sample)
    features = torch.randn(sample.shown.size, model.config.vision_config.hidden_size)
    visible = hide(lesson.shown, 0.5, 0.8)
    with torch.inference_mode():
        one = run_batch(model, [lesson], [features], [visible])
        altered = features.clone()
        altered[lesson.sources[~visible & (lesson.sources < len(features))]] += 100
        other = run_batch(model, [lesson], [altered], [visible])
    torch.testing.assert_close(one.logits, other.logits)


def test_hide_favours_objects() -> None:
    shown = torch.tensor([0] * 80 + [1] * 20)
    assert hide(shown, 1.0, 0.5).all()
    kept = hide(shown, 0.3, 2.0)
    assert kept.sum() == 30
    assert kept[80:].all()
    assert hide(shown, 0.0, 0.0).sum() == 1


def test_labels_tell_what_is_there(sample: Sample) -> None:
    signs = [o for o in sample.objects if o.kind == "sign"]
    glyphs = sample.facts[1:, ..., GLYPH]
    found = sorted(FACTS["glyph"][i - 1] for i in glyphs[glyphs > 0])
    assert found == sorted(o.glyph for o in signs)
    assert set(np.unique(sample.facts[0, ..., GLYPH])) == {0, UNREADABLE}
    for number, one in enumerate(sample.objects, start=1):
        facts = sample.facts[sample.shown == number]
        alike = str(sum(o.name == one.name for o in sample.objects)) if one.kind == "picture" else ""
        values = {"colour": one.colour, "shape": one.shape, "picture": one.name, "number": alike}
        for name, value in values.items():
            expected = FACTS[name].index(value) + 1 if value else 0
            assert (facts[:, list(FACTS).index(name)] == expected).all()
    neighbours = {FACTS["neighbour"][i - 1] for i in sample.facts[..., -1].ravel() if i > 0}
    scene = make_scene(SPLIT, INDEX)
    assert neighbours == {scene.objects[i].name for pair in scene.pairs for i in (pair.first, pair.second)}
    for number, one in enumerate(sample.objects, start=1):
        assert set(sample.attraction[sample.shown == number].tolist()) == {np.float32(1.0 if one.vivid else DULL)}
    around = sample.attraction[sample.shown == 0]
    assert set(around.tolist()) <= {0, np.float32(DULL), np.float32(CLUTTER)}
    assert 0 < (around > 0).mean() < 0.3


def test_what_is_vivid_is_bright_to_the_eye(sample: Sample) -> None:
    """By its colour's name a sign is vivid or not; grey things never are."""
    vivid = {o.colour for i in range(40) for o in make_scene(SPLIT, i).objects if o.kind == "sign" and o.vivid}
    dull = {o.colour for i in range(40) for o in make_scene(SPLIT, i).objects if o.kind == "sign" and not o.vivid}
    assert vivid == {"red", "orange", "yellow", "blue"}
    assert dull == {"green", "purple", "black", "white"}


def test_practice_is_crowded() -> None:
    practice = draw_practice_sample(0)
    assert practice.grid == (2, 2)
    assert sum(o.kind == "sign" for o in practice.objects) >= 12
    assert practice.questions == ()
    names = Counter(o.name for o in practice.objects if o.kind == "picture")
    assert {2, 3} <= set(names.values())
    paired = practice.facts[..., -1][practice.facts[..., -1] > 0]
    assert len(set(paired.tolist())) >= 4
    assert {FACTS["neighbour"][i - 1] for i in paired} <= set(names)


def test_the_encoders_loss_is_that_of_its_labels(model: LlavaNextForConditionalGeneration, sample: Sample) -> None:
    """Heads that say the labels are always right, and cost less than heads that say nothing."""
    facts, attraction = join_labels([sample])
    facts = facts.long()
    told = torch.cat([torch.nn.functional.one_hot(facts[..., i].clamp(min=0), 64) for i in range(len(FACTS))], -1)
    features = torch.cat([torch.zeros(len(told), 1, told.shape[-1]), told], dim=1).float()
    heads = Heads(features.shape[-1])
    with torch.no_grad():
        for number, head in enumerate(heads.token):
            head.weight.zero_()
            head.bias.zero_()
            for label in range(head.out_features):
                head.weight[label, 64 * number + label] = 20
        looks = attraction / attraction.sum(-1, keepdim=True).clamp(min=1e-6)
        flat = torch.full_like(looks, 1 / looks.shape[1])
        loss, right = heads.losses(_seen(features, looks, looks), facts, attraction)
        nothing, none = heads.losses(_seen(torch.zeros_like(features), looks, looks), facts, attraction)
        early, _ = heads.losses(_seen(features, flat, looks), facts, attraction)
        late, looked = heads.losses(_seen(features, looks, flat), facts, attraction)
    assert right[: len(FACTS)] == [1.0] * len(FACTS)
    assert set(none[: len(FACTS)]) == {0.0}
    assert loss < nothing - 3
    assert loss < early == pytest.approx(late.item())
    vivid = attraction >= CLUTTER
    assert right[-2:] == pytest.approx([(looks * vivid).sum(-1).mean().item()] * 2)
    assert right[-1] > 0.5
    assert looked[-1] == pytest.approx(vivid.float().mean().item())


def _seen(features: torch.Tensor, early: torch.Tensor, late: torch.Tensor) -> Seen:
    return Seen(features=features, saliency=early, late_saliency=late)


@pytest.mark.slow
def test_a_small_training_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = train(tmp_path, 0.004)
    again, _ = train(tmp_path, 0.004)
    assert capsys.readouterr().out.count("taken from") == 3
    for name, weight in made.state_dict().items():
        assert weight.isfinite().all()
        assert torch.equal(weight, again.state_dict()[name])
    with pytest.raises(ConfigError, match="another training"):
        train(tmp_path, 0.003)
