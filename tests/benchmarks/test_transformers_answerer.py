"""Answers on the tokens that a method keeps, against transformers' own generation and forwards made by hand."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from checkpoints import Geometry, write_checkpoint
from PIL import Image

from ptp.benchmarks.evaluation.answerers import Answerers
from ptp.benchmarks.evaluation.transformers_answerer import TransformersAnswerer, TransformersModel
from ptp.benchmarks.evaluation.variants import VARIANTS
from ptp.benchmarks.methods import METHODS, with_newlines
from ptp.benchmarks.methods.from_transformers import view_from_transformers, view_of_image
from ptp.errors import ConfigError, PromptError
from ptp.export.checkpoint import find_weights, load_model, open_checkpoint

QUESTIONS = ["What is in the picture?", "?", "Réponds en détail, what does the cat look at? 😀", "A cat or a camera?"]
TOKENS = 12
KEEP = Fraction(1, 5)
BUDGET = 16  # of 5 tiles with 16 tokens each


def picture(seed: int, height: int = 90, width: int = 140) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


PICTURES = [picture(0), picture(1, 200, 60)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Four blocks: FastV prunes after two."""
    folder = write_checkpoint(tmp_path_factory.mktemp("deep"), Geometry(layers=4))
    return open_checkpoint(str(folder), None, weights=True)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint, find_weights(checkpoint, "fp32"))


@pytest.fixture(scope="module")
def answerers(checkpoint, tmp_path_factory):
    with Answerers(str(checkpoint.folder), tmp_path_factory.mktemp("cache"), max_new_tokens=TOKENS) as opened:
        yield opened


def asked(checkpoint, image, question):
    """Return what transformers' processor makes of an image and a question."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return checkpoint.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def text_of(checkpoint, tokens):
    return checkpoint.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("language_model", ["llama", "mistral", "qwen2"])
def test_the_whole_image_is_answered_as_transformers_does(tiny_checkpoint, language_model):
    checkpoint = open_checkpoint(str(tiny_checkpoint(language_model)), None, weights=True)
    model = load_model(checkpoint, find_weights(checkpoint, "fp32"))
    opened = TransformersModel(checkpoint, max_new_tokens=TOKENS)
    for image in PICTURES:
        answers = TransformersAnswerer(opened, None, 0).answer(image, QUESTIONS)
        for question, answer in zip(QUESTIONS, answers, strict=True):
            inputs = asked(checkpoint, image, question)
            assert opened.prompt(question, opened.view(image)[1]).tolist() == inputs["input_ids"][0].tolist()
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            assert answer == text_of(checkpoint, out[0, inputs["input_ids"].shape[1] :])
        assert len(set(answers)) > 1, "answers that show nothing"


def test_a_sliding_window_is_that_of_transformers(tiny_checkpoint):
    checkpoint = open_checkpoint(str(tiny_checkpoint("mistral")), None, weights=True)
    image, question = PICTURES[0], QUESTIONS[0]
    answers = []
    for window in (9, None):
        opened = TransformersModel(checkpoint, max_new_tokens=TOKENS)
        opened.model.model.language_model.config.sliding_window = window
        answers += TransformersAnswerer(opened, None, 0).answer(image, [question])
        with torch.inference_mode():
            inputs = asked(checkpoint, image, question)
            out = opened.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        assert answers[-1] == text_of(checkpoint, out[0, inputs["input_ids"].shape[1] :])
    assert answers[0] != answers[1]


def masked_answer(model, checkpoint, inputs, features, kept, first_block):
    """Return the greedy answer where rows that are not kept are hidden from `first_block` on, by masks.

    Nothing is dropped and nothing cached: each step runs the model's own blocks on the whole sequence.
    """
    language, ids = model.model.language_model, inputs["input_ids"][0]
    image = ids == model.config.image_token_id
    embeds = model.get_input_embeddings()(ids).clone()
    embeds[image] = torch.from_numpy(features)
    visible = torch.ones(len(ids), dtype=torch.bool)
    visible[image] = torch.from_numpy(np.isin(np.arange(len(features)), kept))
    tokens: list[int] = []
    while len(tokens) < TOKENS:
        length = len(embeds)
        causal = torch.ones(length, length).tril().bool()
        seen = torch.cat([visible, torch.ones(length - len(visible), dtype=torch.bool)])
        hidden = embeds[None]
        rotary = language.rotary_emb(hidden, torch.arange(length)[None])
        for index, block in enumerate(language.layers):
            allowed = causal & (seen if index >= first_block else True) | torch.eye(length).bool()
            mask = torch.zeros(length, length).masked_fill(~allowed, -1e9)[None, None]
            hidden = block(hidden, attention_mask=mask, position_embeddings=rotary)
        tokens.append(int(model.lm_head(language.norm(hidden))[0, -1].argmax()))
        if tokens[-1] == checkpoint.processor.tokenizer.eos_token_id:
            break
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor(tokens[-1:]))])
    return text_of(checkpoint, tokens)


@pytest.mark.parametrize("name", ["uniform", "fastervlm", "visionzip", "dart", "fastv"])
def test_a_method_answers_as_a_forward_with_masks(answerers, checkpoint, model, name):
    """FastV's first blocks see everything; VisionZip has features of its own; both and DART's choice by the prompt."""
    answerer, method = answerers.open(VARIANTS[name], KEEP), METHODS[name]
    whole = answerers.open(VARIANTS["unpruned"], Fraction(1))
    changed = 0
    with torch.inference_mode():
        for image in PICTURES:
            answers = answerer.answer(image, QUESTIONS)
            changed += answers != whole.answer(image, QUESTIONS)
            for question, answer in zip(QUESTIONS, answers, strict=True):
                inputs = asked(checkpoint, image, question)
                view = view_from_transformers(model, inputs)
                choice = method.choose(view, BUDGET)
                assert len(choice.positions) == BUDGET
                features = view.features.copy()
                if choice.features is not None:
                    features[choice.positions] = choice.features
                kept = with_newlines(view, choice)[0]
                assert answer == masked_answer(model, checkpoint, inputs, features, kept, method.prunes_after)
    assert changed, "pruning that shows nothing"


def test_the_budget_is_that_of_ptp(answerers):
    for keep, tokens in ((Fraction(1), 80), (KEEP, BUDGET), (Fraction(1, 3), 26), (Fraction("0.0125"), 1)):
        for name in ("ptp", "random", "fastv"):
            assert answerers.num_kept(VARIANTS[name], keep) == tokens + 12
        assert answerers.num_kept(VARIANTS["ptp-newline-drop"], keep) == tokens
    assert answerers.num_kept(VARIANTS["unpruned"], Fraction(1)) == 92


@pytest.mark.parametrize(
    ("name", "keep"), [("unpruned", KEEP), ("random", Fraction(0)), ("random", Fraction(2)), ("ptp", Fraction(1, 81))]
)
def test_a_budget_that_cannot_be_had(answerers, name, keep):
    with pytest.raises(ConfigError):
        answerers.num_kept(VARIANTS[name], keep)
    with pytest.raises(ConfigError):
        answerers.open(VARIANTS[name], keep)


def test_a_view_is_made_once_while_there_is_room(checkpoint, monkeypatch):
    made = []
    path = "ptp.benchmarks.evaluation.transformers_answerer.view_of_image"
    monkeypatch.setattr(path, lambda *given: made.append(given) or view_of_image(*given))

    def count(view_bytes):
        """Return how many views are made of two images, in three rounds."""
        made.clear()
        opened = TransformersModel(checkpoint, max_new_tokens=1, view_bytes=view_bytes)
        for image in PICTURES * 3:
            opened.view(image.copy())
        return len(made)

    everything = TransformersModel(checkpoint, max_new_tokens=1)
    sizes = [size(everything.view(image)[1]) for image in PICTURES]
    assert count(sum(sizes)) == 2
    assert count(max(sizes)) == 1 + 3  # what came first stays
    assert count(0) == 6


def size(view):
    arrays = [value for value in vars(view).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in [*arrays, *view.cls_attention.values(), *view.cls_logits.values()])


def test_a_random_method_draws_again_what_it_drew(answerers, checkpoint):
    first = answerers.open(VARIANTS["random"], KEEP).answer(PICTURES[0], QUESTIONS)
    assert first == answerers.open(VARIANTS["random"], KEEP).answer(PICTURES[0].copy(), QUESTIONS)
    alone = [answerers.open(VARIANTS["random"], KEEP).answer(PICTURES[0], [text])[0] for text in QUESTIONS]
    assert alone == first, "an answer depends on what else is asked"


def test_a_question_must_not_hold_the_image_token(answerers):
    with pytest.raises(PromptError, match="one image token"):
        answerers.open(VARIANTS["unpruned"], Fraction(1)).answer(PICTURES[0], ["what is <image>?"])


def test_the_weights_are_those_of_the_checkpoint(answerers, checkpoint):
    expected = hashlib.sha256((checkpoint.folder / "model.safetensors").read_bytes()).hexdigest()
    assert answerers.weights == expected
    assert {"python", "torch", "transformers", "onnxruntime"} <= set(answerers.tools)
