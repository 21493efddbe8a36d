"""What is recorded for `ptp verify` is what transformers itself computes."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ptp.bundle.vectors import MAX_TOKENS, TENSORS
from ptp.errors import CheckpointError
from ptp.export.checkpoint import find_weights, load_model, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.gates import vectors
from ptp.export.gates.images import gate_image
from ptp.export.gates.parity import process
from ptp.export.gates.vectors import QUESTION, Scores, record_vectors
from ptp.export.plan import make_plan
from ptp.runtime.preprocess.tiles import normalised_tiles


@pytest.fixture(scope="module")
def record(tiny_checkpoint, tmp_path_factory):
    """Record vectors of a tiny checkpoint; return them with the checkpoint, its plan and its model."""

    def call(language_model="llama", **options):
        options = {"keep": Fraction("0.25"), "max_prompt": 80} | options
        folder = str(tiny_checkpoint(language_model))
        config = ExportConfig(model=folder, out=tmp_path_factory.mktemp("out"), **options)
        checkpoint = open_checkpoint(folder, None, weights=True)
        plan, model = make_plan(config, checkpoint), load_model(checkpoint, find_weights(checkpoint, config.precision))
        return record_vectors(plan, checkpoint, model), checkpoint, plan, model

    return call


@pytest.mark.parametrize("language_model", ["llama", "mistral", "qwen2"])
def test_with_every_token_kept_the_answer_is_that_of_transformers_generate(record, language_model):
    recorded, checkpoint, plan, model = record(language_model, keep=Fraction(1), instruction="none")
    assert len(recorded) == 3
    assert len({tuple(vector.tile_grid) for vector in recorded}) == 3
    for vector in recorded:
        size = tuple(vector.image_size.tolist())
        image = gate_image(size, 0)  # every choice is clear, so that the first image is taken
        pixels = process(image, checkpoint, plan.tiling)
        tiles = normalised_tiles(vector.tiles, size, tuple(vector.tile_grid.tolist()), plan.tiling)
        np.testing.assert_array_equal(tiles.pixel_values[: len(pixels)], pixels)
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        text = checkpoint.processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = checkpoint.processor(images=image, text=text, input_data_format="channels_last", return_tensors="pt",
                                      add_special_tokens=False)  # fmt: skip
        with torch.inference_mode():
            answer = model.generate(
                **inputs, max_new_tokens=MAX_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        np.testing.assert_allclose(vector.logits, answer.logits[0][0].numpy(), atol=1e-4)
        assert vector.tokens.tolist() == answer.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        best = answer.logits[0][0].topk(2).values
        assert vector.leads[0] == pytest.approx(float(best[0] - best[1]) / np.abs(vector.logits).max(), abs=1e-4)


def test_the_prompt_is_the_chat_templates(record):
    (vector, *_), checkpoint, _, model = record(instruction="similarity")
    tokenizer, start = checkpoint.processor.tokenizer, int(vector.prefix_length[0])
    ids = vector.input_ids.tolist()
    assert tokenizer.decode(ids[:start]) + "<image>" + tokenizer.decode(ids[start:]) == (
        f"<s>[INST] <image>\n{QUESTION} [/INST]"
    )
    assert tokenizer.decode(np.array(ids)[vector.question_mask]).strip() == QUESTION
    expected = model.get_input_embeddings().weight[ids].detach().numpy()
    np.testing.assert_array_equal(vector.inputs_embeds, expected)


def test_a_prompt_beyond_the_longest_is_the_question_cut(record):
    (vector, *_), checkpoint, *_ = record(max_prompt=5)
    assert QUESTION.startswith(checkpoint.processor.tokenizer.decode(vector.input_ids))
    assert len(vector.input_ids) == 5
    assert vector.question_mask.all()
    assert vector.prefix_length == 0


def test_a_template_that_cannot_be_rendered_is_refused(record, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("no such role")

    monkeypatch.setattr("transformers.LlavaNextProcessor.apply_chat_template", refuse)
    with pytest.raises(CheckpointError, match=r"chat template of .* cannot be rendered; got no such role"):
        record()


def test_the_same_model_gives_the_same_vectors(record):
    one, two = record(precision="fp16")[0], record(precision="fp16")[0]
    for first, second in zip(one, two, strict=True):
        for name in TENSORS:
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert first.image_features.dtype == np.float16


def test_an_image_is_drawn_again_until_its_choice_is_clear(record, monkeypatch):
    plain = record()[0]
    answers = iter([False, False, True] + [True] * 10)
    monkeypatch.setattr(Scores, "decide_clearly", lambda self: next(answers))
    drawn = []
    monkeypatch.setattr(vectors, "gate_image", lambda size, seed: (drawn.append(seed), gate_image(size, seed))[1])
    again = record()[0]
    assert drawn == [0, 1, 2, 0, 0]
    assert (again[0].tiles != plain[0].tiles).any()


def test_a_choice_that_hangs_on_a_rounding_error_is_not_clear(record, monkeypatch):
    """Of tokens with equal scores the first are kept, and the least error lets others be."""
    seen = []
    clear = Scores.decide_clearly
    monkeypatch.setattr(Scores, "decide_clearly", lambda self: (seen.append(self), clear(self))[1])
    record(instruction="none")
    scores = seen[0]
    assert clear(scores)
    scores._scores[0] = np.ones_like(scores._scores[0])
    assert not clear(scores)


def test_wide_features_are_recorded_of_fewer_images(record, monkeypatch):
    one = len(record()[0][0].image_features)
    monkeypatch.setattr(vectors, "MAX_FEATURE_BYTES", 3 * one * 64 * 4 - 1)
    assert len(record()[0]) < 3
    monkeypatch.setattr(vectors, "MAX_FEATURE_BYTES", 1)
    assert len(record()[0]) == 1
