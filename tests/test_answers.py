"""Answers of the runtime against transformers, token for token."""

import shutil
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from fused import add_fused_decoder
from PIL import Image

from ptp import Pipeline
from ptp.bundle import Bundle, open_bundle
from ptp.demo import CHECKPOINT
from ptp.export.checkpoint import find_weights, load_model, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.pipeline import export
from ptp.runtime.backends import onnxruntime_cache
from ptp.runtime.backends.registry import graph_loader
from ptp.runtime.decoding import Decoder

QUESTIONS = {
    "cat": "What is in the picture?",
    "astronaut": "Who is this, and what is behind her? Réponds en détail 😀",
    "rocket": "[INST] is not a question [/INST]",
    "coffee": "?",
}
TOKENS = 32


def portable(bundle):
    """Return the bundle as other runtimes read it."""
    without = {"decoder_onnxruntime": None, "vision_encoder_onnxruntime": None}
    graphs = bundle.manifest.graphs.model_copy(update=without)
    return Bundle(folder=bundle.folder, manifest=bundle.manifest.model_copy(update={"graphs": graphs}))


def generate(checkpoint, image, question, *, stop=True):
    """Return transformers' own greedy tokens for the unpruned model."""
    opened = open_checkpoint(str(checkpoint), None, weights=True)
    model = load_model(opened, find_weights(opened, "fp32"))
    if not stop:
        model.generation_config.eos_token_id = None
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = opened.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("photo", QUESTIONS)
def test_the_demo_at_keep_one_answers_as_transformers_does(full_bundle, photos, photo):
    expected = generate(CHECKPOINT, Image.open(photos[photo]), QUESTIONS[photo])
    answer = Pipeline.load(full_bundle).generate(photos[photo], QUESTIONS[photo], max_new_tokens=TOKENS)
    assert list(answer.token_ids) == expected


@pytest.fixture(scope="module")
def unpruned(tiny_checkpoint, tmp_path_factory):
    """Pipelines over tiny random checkpoints at keep 1, whose answers do not end by themselves: fused, portable."""
    made = {}

    def get(language_model):
        if language_model not in made:
            out = tmp_path_factory.mktemp("unpruned") / language_model
            export(
                ExportConfig(
                    model=str(tiny_checkpoint(language_model)),
                    out=out,
                    keep=Fraction(1),
                    instruction="none",
                    max_prompt=128,
                    optimize="onnxruntime",
                )
            )
            made[language_model] = Pipeline.load(out), Pipeline(portable(open_bundle(out)), graph_loader())
        return made[language_model]

    return get


@pytest.mark.parametrize("language_model", ["llama", "mistral", "qwen2"])
def test_every_language_model_answers_as_transformers_does(unpruned, tiny_checkpoint, photos, language_model):
    for photo, question in QUESTIONS.items():
        expected = generate(tiny_checkpoint(language_model), Image.open(photos[photo]), question)
        for pipeline in unpruned(language_model):
            answer = pipeline.generate(photos[photo], question, max_new_tokens=TOKENS)
            assert list(answer.token_ids) == expected
        assert len(set(expected)) > 3, "an answer that shows nothing"


PRUNED = {
    "attention": {},
    "similarity in fp16": {"instruction": "similarity", "precision": "fp16"},
    "renumbered": {"instruction": "none", "positions": "compact"},
    "without newlines": {"instruction": "none", "newline": "drop"},
}


@pytest.mark.parametrize("name", PRUNED)
def test_a_pruned_answer_is_transformers_language_model_on_the_kept_rows(tmp_path, photos, name):
    """Rows of `get_image_features` at the kept positions, spliced by hand, every step computed from the beginning."""
    options = {"instruction": "attention", "keep": Fraction("0.25"), "max_prompt": 64} | PRUNED[name]
    export(ExportConfig(model="demo", out=tmp_path / "out", **options))
    pipeline = Pipeline.load(tmp_path / "out")
    question = QUESTIONS["cat"]
    visual = pipeline.encode(photos["cat"], question)
    assert 0 < visual.count < visual.packed_length / 2

    opened = open_checkpoint("demo", None, weights=True)
    model = load_model(opened, find_weights(opened, "fp32"))
    content = [{"type": "image", "image": Image.open(photos["cat"])}, {"type": "text", "text": question}]
    inputs = opened.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    ids = inputs["input_ids"][0]
    is_image = ids == model.config.image_token_id
    kept = torch.from_numpy(visual.positions)
    with torch.inference_mode():
        features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
        embeds = model.get_input_embeddings()(ids)
        embeds[is_image] = features
        image_rows = torch.nonzero(is_image).flatten()
        rows = torch.cat([torch.nonzero(~is_image).flatten(), image_rows[kept]]).sort().values
        positions = torch.arange(len(rows)) if pipeline.manifest.pruning.positions == "compact" else rows.clone()
        embeds = embeds[rows]
        expected = []
        for _ in range(TOKENS):
            logits = model.lm_head(
                model.model.language_model(inputs_embeds=embeds[None], position_ids=positions[None]).last_hidden_state
            )[0, -1]
            expected.append(int(logits.argmax()))
            if expected[-1] in pipeline.manifest.prompting.eos_token_ids:
                break
            embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor(expected[-1:]))])
            positions = torch.cat([positions, positions[-1:] + 1])
    answer = pipeline.generate(photos["cat"], question, max_new_tokens=TOKENS)
    assert list(answer.token_ids) == expected
    assert np.array_equal(visual.positions, np.unique(visual.positions))


def test_the_fused_decoder_continues_as_transformers_does(demo_bundle, tmp_path, monkeypatch):
    """Rows at positions with gaps, in pieces, further than a buffer has room for; the portable decoder beside it."""
    monkeypatch.setattr(onnxruntime_cache, "MIN_ROOM", 3)
    opened = open_checkpoint("demo", None, weights=True)
    model = load_model(opened, find_weights(opened, "fp32"))
    folder = shutil.copytree(demo_bundle, tmp_path / "bundle")
    add_fused_decoder(folder, "demo")
    bundle = open_bundle(folder)
    table = model.get_input_embeddings().weight.detach()
    answers = set()
    for seed in range(3):
        random = np.random.default_rng(seed)
        ids = random.integers(3, len(table), 20)
        positions = np.sort(random.choice(120, 20, replace=False))
        with torch.inference_mode():
            expected = continue_greedily(model, torch.from_numpy(ids), torch.from_numpy(positions), 24)
        forms = ((bundle, "onnxruntime"), (portable(bundle), "onnxruntime"), (portable(bundle), "openvino"))
        for (one, backend), chunk in product(forms, (20, 10, 7)):
            load = graph_loader(backend, threads=1)
            decoder = Decoder(one, load, load(one, one.manifest.graphs.embed_tokens))
            monkeypatch.setattr(decoder.graph, "prefill_chunk", chunk)
            decoding, found = decoder.begin(), []
            prediction = decoding.prefill(table[ids].numpy(), positions)
            while len(found) < len(expected):
                found.append(prediction.token)
                prediction = decoding.append(prediction.tokens)
            assert found == expected
        answers.add(tuple(expected))
    assert len(answers) == 3


def continue_greedily(model, ids, positions, count):
    """Return transformers' tokens after a prompt, every step computed from the beginning."""
    tokens = []
    for _ in range(count):
        embeds = model.get_input_embeddings()(torch.cat([ids, torch.tensor(tokens, dtype=ids.dtype)]))
        places = torch.cat([positions, positions[-1:] + 1 + torch.arange(len(tokens))])
        hidden = model.model.language_model(
            inputs_embeds=embeds[None],
            # without a mask, transformers takes a gap in the positions for the beginning of another text
            attention_mask=torch.ones(1, len(embeds), dtype=torch.int64),
            position_ids=places[None],
        ).last_hidden_state
        tokens.append(int(model.lm_head(hidden)[0, -1].argmax()))
    return tokens
