"""Answers of exported bundles, against transformers on the tokens that the readable reference keeps."""

import gc
import hashlib
import shutil
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from checkpoints import Geometry, write_checkpoint
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from ptp.benchmarks.evaluation import onnx_answerer
from ptp.benchmarks.evaluation.answerers import Answerers
from ptp.benchmarks.evaluation.variants import VARIANTS
from ptp.export.checkpoint import find_weights, load_model, open_checkpoint
from ptp.ptp_graph.reference import NEWLINE, keep_tokens, packed_sequence
from ptp.ptp_graph.schedule import Schedule
from ptp.runtime.vision import VisualEncoder

QUESTIONS = ["What is in the picture?", "A cat?", "Réponds en détail, what does the camera look at? 😀"]
TOKENS = 10
KEEP = Fraction(1, 5)
OPTIONS = {"max_prompt": 128, "max_new_tokens": TOKENS}


def picture(seed: int, height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


PICTURES = [picture(0, 90, 140), picture(1, 200, 60)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A shallow vision tower: it is exported twice."""
    folder = write_checkpoint(tmp_path_factory.mktemp("shallow"), Geometry(vision_layers=5))
    return open_checkpoint(str(folder), None, weights=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def answerers(checkpoint, cache):
    with Answerers(str(checkpoint.folder), cache, **OPTIONS) as opened:
        yield opened


@pytest.fixture(scope="module")
def answers(answerers):
    """Answers of a variant about every picture; each is asked once."""
    made = {}

    def get(name, keep):
        if (name, keep) not in made:
            answerer = answerers.open(VARIANTS[name], keep)
            made[name, keep] = [answerer.answer(image, QUESTIONS) for image in PICTURES]
        return made[name, keep]

    return get


@pytest.fixture(scope="module")
def model(checkpoint):
    loaded = load_model(checkpoint, find_weights(checkpoint, "fp32"))
    loaded.set_attn_implementation("eager")
    return loaded


@pytest.mark.parametrize("name", ["ptp", "ptp-none"])
def test_at_keep_one_it_answers_as_the_whole_image(answers, name):
    assert answers(name, Fraction(1)) == answers("unpruned", Fraction(1))
    assert answers(name, KEEP) != answers("unpruned", Fraction(1)), "pruning that shows nothing"


@torch.inference_mode()
def reference_answer(model, checkpoint, image, question, *, alpha, compact=False):
    """Return the answer of transformers' language model on the rows that the reference keeps.

    Every score is read off transformers' own attentions; every step is computed from the beginning.
    """
    processor, tiling = checkpoint.processor, checkpoint.tiling
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    offsets = inputs.pop("offset_mapping")[0]
    ids, pixels = inputs["input_ids"][0], inputs["pixel_values"][0]
    is_image = ids == model.config.image_token_id

    schedule = Schedule(keep=KEEP, side=tiling.tokens_per_side, grids=tiling.grids)
    seen = model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    depth = model.config.vision_config.num_hidden_layers
    saliency = np.zeros((schedule.num_tiles, schedule.tokens_per_tile), np.float32)
    saliency[: len(pixels)] = seen.attentions[round(11 / 24 * depth) - 1][:, :, 0, 1:].mean(dim=1)
    cls = seen.hidden_states[-2][:, 0]
    weights = np.zeros(schedule.num_tiles, np.float32)
    cosines = torch.nn.functional.cosine_similarity(cls[1:], cls[:1])
    weights[1 : len(pixels)] = torch.softmax(cosines / 0.5, dim=0)
    size = tuple(inputs["image_sizes"][0].tolist())
    grid = get_anyres_image_grid_shape(size, model.config.image_grid_pinpoints, tiling.tile_size)

    relevance = None
    if alpha:
        attention = model(**inputs, output_attentions=True).attentions[1][0].mean(dim=0)  # (S, S)
        start = processor.tokenizer.decode(ids).index(question)
        asks = (offsets[:, 0] < start + len(question)) & (offsets[:, 1].maximum(offsets[:, 0] + 1) > start)
        packed = attention[asks & ~is_image][:, is_image].max(dim=0).values
        relevance = scattered(packed.numpy(), schedule, size, grid, saliency.shape)
    kept = keep_tokens(schedule, size, grid, saliency, weights, relevance, alpha).positions

    features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
    embeds = model.get_input_embeddings()(ids)
    embeds[is_image] = features
    rows = torch.cat([torch.nonzero(~is_image).flatten(), torch.nonzero(is_image).flatten()[kept]]).sort().values
    embeds, positions = embeds[rows], torch.arange(len(rows)) if compact else rows
    tokens = []
    while len(tokens) < TOKENS and processor.tokenizer.eos_token_id not in tokens:
        hidden = model.model.language_model(inputs_embeds=embeds[None], position_ids=positions[None]).last_hidden_state
        tokens.append(int(model.lm_head(hidden)[0, -1].argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor(tokens[-1:]))])
        positions = torch.cat([positions, positions[-1:] + 1])
    return processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def scattered(packed, schedule, size, grid, shape):
    """Return values of packed rows as (T, N), newline rows left out."""
    values = np.zeros(shape, np.float32)
    for value, source in zip(packed, packed_sequence(*size, grid, schedule.side), strict=True):
        if source != NEWLINE:
            values.reshape(-1)[source] = value
    return values


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ptp", {"alpha": 0.5}),
        ("ptp-alpha-1", {"alpha": 1.0}),
        ("ptp-none", {"alpha": 0.0}),
        ("ptp-positions-compact", {"alpha": 0.5, "compact": True}),
    ],
)
def test_it_answers_as_transformers_on_the_tokens_of_the_reference(answers, model, checkpoint, name, options):
    expected = [[reference_answer(model, checkpoint, image, q, **options) for q in QUESTIONS] for image in PICTURES]
    assert answers(name, KEEP) == expected


def test_alpha_is_given_with_the_call(answers):
    assert answers("ptp-alpha-0", KEEP) == answers("ptp-none", KEEP)
    others = [answers(name, KEEP) for name in ("ptp-alpha-0", "ptp", "ptp-alpha-1")]
    assert others[0] != others[1] != others[2]


def test_positions_matter(answers):
    assert answers("ptp-positions-compact", KEEP) != answers("ptp", KEEP)


def test_a_bundle_is_exported_once(answers, checkpoint, cache, monkeypatch, tmp_path):
    for name in ("ptp", "ptp-none", "ptp-alpha-auto", "ptp-positions-compact"):
        answers(name, KEEP)
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["attention", "none"]
    exported = []
    monkeypatch.setattr(onnx_answerer, "export", lambda config, progress: exported.append(config))

    def folder(model, name="ptp", **changes):
        opened = Answerers(str(model), cache, **OPTIONS | changes)
        return opened._bundles.get(VARIANTS[name].ptp)

    ready = folder(checkpoint.folder)
    assert not exported
    assert folder(shutil.copytree(checkpoint.folder, tmp_path / "copy")) == ready, "the same weights"
    assert not exported
    other = shutil.copytree(checkpoint.folder, tmp_path / "other")
    changed = bytearray((other / "model.safetensors").read_bytes())
    changed[-1] ^= 1
    (other / "model.safetensors").write_bytes(changed)
    assert len({ready, folder(other), folder(checkpoint.folder, max_prompt=64)}) == 3
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert folder(other) not in {ready, exported[0].out}
    assert len(exported) == 3


def test_an_export_has_the_options_of_its_variant(checkpoint, tmp_path, monkeypatch):
    exported = []
    monkeypatch.setattr(onnx_answerer, "export", lambda config, progress: exported.append(config))
    bundles = Answerers(str(checkpoint.folder), tmp_path, **OPTIONS)._bundles
    variants = [variant for variant in VARIANTS.values() if variant.ptp]
    for variant in variants:
        bundles.get(variant.ptp)
    for variant, config in zip(variants, exported, strict=True):
        options = variant.ptp
        assert (config.instruction, config.region, config.newline) == (
            options.instruction,
            options.region,
            options.newline,
        )
        assert (config.alpha, config.max_prompt, config.keep_range) == (None, 128, (Fraction(1, 80), Fraction(1)))
    kinds = {(config.instruction, config.region, config.newline) for config in exported}
    assert len({config.out for config in exported}) == len(kinds)


@pytest.mark.parametrize(("name", "times"), [("ptp-none", 1), ("ptp", len(QUESTIONS))])
def test_an_image_is_encoded_once_where_the_question_has_no_say(answerers, monkeypatch, name, times):
    calls = []
    encode = VisualEncoder.encode
    monkeypatch.setattr(VisualEncoder, "encode", lambda *a, **options: calls.append(1) or encode(*a, **options))
    answerers.open(VARIANTS[name], KEEP).answer(PICTURES[0], QUESTIONS)
    assert len(calls) == times


def test_one_bundle_is_loaded_at_a_time(answerers):
    first = answerers.open(VARIANTS["ptp"], KEEP)
    pipeline = weakref.ref(first._pipeline)
    assert answerers.open(VARIANTS["ptp-alpha-1"], Fraction(1))._pipeline is pipeline()
    del first
    answerers.open(VARIANTS["ptp-none"], KEEP)
    gc.collect()
    assert pipeline() is None


def test_nothing_is_loaded_when_the_context_is_left(checkpoint, cache):
    with Answerers(str(checkpoint.folder), cache, **OPTIONS) as opened:
        pipeline = weakref.ref(opened.open(VARIANTS["ptp-none"], KEEP)._pipeline)
        assert opened.weights == hashlib.sha256((checkpoint.folder / "model.safetensors").read_bytes()).hexdigest()
    gc.collect()
    assert pipeline() is None
