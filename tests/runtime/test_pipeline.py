"""The pipeline around the graphs: what they are fed, in which order, and when it ends."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import HIDDEN, MAX_PROMPT, FakeBundle, embed, tokenizer
from PIL import Image

from ptp import Pipeline
from ptp.bundle import Manifest
from ptp.errors import BackendError, BundleError, ConfigError, ImageError, PromptError, SchemaError
from ptp.runtime.preprocess.tiles import make_tiles

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8))
PREFIX, SUFFIX = "<s>[INST] ", "\nhi [/INST]"
P, S, M = 8, 11, 30  # text tokens before and after the image (one per byte, one for <s>); packed length


def ids(text: str) -> list[int]:
    return tokenizer().encode(text).ids


def fake(folder: Path, answer: str = "ok</s>", **changes: dict) -> FakeBundle:
    return FakeBundle(folder, ids(answer), changes=changes)


def pipeline(bundle: FakeBundle) -> Pipeline:
    return Pipeline(bundle.bundle, bundle.load_graph)


def test_answer_ends_at_the_end_token(tmp_path: Path) -> None:
    answer = pipeline(fake(tmp_path)).generate(IMAGE, "hi")
    assert (answer.text, answer.stop_reason, answer.num_visual_tokens) == ("ok", "eos", 5)
    assert list(answer.token_ids) == ids("ok</s>")


def test_vision_graph_is_fed_tiles_and_prompt(tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    pipeline(bundle).generate(IMAGE, "hi", alpha=0.25)
    (feeds,) = bundle.graphs["vision.onnx"].calls
    text = ids(PREFIX) + ids(SUFFIX)
    np.testing.assert_array_equal(feeds["pixel_values"][0], make_tiles(IMAGE, bundle.manifest.tiling).pixel_values)
    assert feeds["image_sizes"].tolist() == [[8, 16]]
    assert feeds["tile_grid"].tolist() == [[1, 2]]
    assert feeds["alpha"].tolist() == [0.25]
    assert feeds["prompt_mask"][0].tolist() == [i < P + S for i in range(MAX_PROMPT)]
    assert np.flatnonzero(feeds["question_mask"][0]).tolist() == [P + 1, P + 2]
    assert feeds["prefix_length"].tolist() == [P]
    np.testing.assert_array_equal(feeds["prompt_embeds"][0, : P + S], embed(np.array(text)))
    assert not feeds["prompt_embeds"][0, P + S :].any()


def test_alpha_defaults_to_the_manifest(tmp_path: Path) -> None:
    bundle = fake(tmp_path, pruning={"alpha": 0.75})
    pipeline(bundle).encode(IMAGE, "hi")
    assert bundle.graphs["vision.onnx"].calls[0]["alpha"].tolist() == [0.75]


def test_features_stand_between_prefix_and_suffix_without_padding(tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    pipeline(bundle).generate(IMAGE, "hi")
    embeds = bundle.graphs["decoder.onnx"].calls[0]["inputs_embeds"][0]
    np.testing.assert_array_equal(embeds[:P], embed(np.array(ids(PREFIX))))
    np.testing.assert_array_equal(embeds[P : P + 5], np.tile(-np.arange(5.0)[:, None], (1, HIDDEN)))
    np.testing.assert_array_equal(embeds[P + 5 :], embed(np.array(ids(SUFFIX))))


def test_questions_may_share_the_tokens_of_an_image(tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    shared = pipeline(bundle)
    visual = shared.encode(IMAGE, "hi")
    for question in ("hi", "ho?"):
        answer = shared.stream_from(visual, question, max_new_tokens=1).answer()
        alone = fake(tmp_path)
        pipeline(alone).generate(IMAGE, question, max_new_tokens=1)
        assert answer.num_visual_tokens == 5
        for name in ("inputs_embeds", "position_ids"):
            found, expected = (x.graphs["decoder.onnx"].calls[-1][name] for x in (bundle, alone))
            np.testing.assert_array_equal(found, expected)
    assert len(bundle.graphs["vision.onnx"].calls) == 1
    with pytest.raises(ConfigError, match="max_new_tokens"):
        shared.stream_from(visual, "hi", max_new_tokens=0)
    with pytest.raises(PromptError, match="empty"):
        shared.stream_from(visual, " ")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("original", [*range(P), P, P + 3, P + 4, P + 9, P + 21, *range(P + M, P + M + S + 2)]),
        ("compact", [*range(P + 5 + S + 2)]),
    ],
)
def test_positions(policy: str, expected: list[int], tmp_path: Path) -> None:
    bundle = fake(tmp_path, "abc", pruning={"positions": policy})
    pipeline(bundle).generate(IMAGE, "hi", max_new_tokens=3)
    fed = bundle.graphs["decoder.onnx"].fed
    assert [position for step in fed for position in step["position_ids"][0].tolist()] == expected
    # the cache that came back is what went in before
    assert bundle.graphs["decoder.onnx"].returned[-1]["present.1.value"].value[0, 0, :, 0].tolist() == expected


def test_only_the_token_visits_the_host(tmp_path: Path) -> None:
    """Greedy decoding feeds nothing but what came back, embeddings and the token itself included."""
    bundle = fake(tmp_path, "abc")
    pipeline(bundle).generate(IMAGE, "hi", max_new_tokens=4)
    graph, embedding = bundle.graphs["decoder.onnx"], bundle.graphs["embed.onnx"]
    assert len(graph.calls) == 4
    steps = zip(graph.returned, embedding.calls[1:], embedding.returned[1:], graph.calls[1:], strict=False)
    for before, embeds, embedded, after in steps:
        assert embeds["input_ids"] is before["next_tokens"]
        assert after["inputs_embeds"] is embedded["inputs_embeds"]
        assert after["attention_mask"] is before["next_attention_mask"]
        assert after["position_ids"] is before["next_position_ids"]
        assert after["past_key_values.1.key"] is before["present.1.key"]
        assert not embedded["inputs_embeds"].copies
    for outputs in graph.returned:
        assert {name: x.copies for name, x in outputs.items() if x.copies} == {"next_tokens": 1}


def test_drawing_tokens_looks_at_the_logits(tmp_path: Path) -> None:
    bundle = fake(tmp_path, "abc")
    answer = pipeline(bundle).generate(IMAGE, "hi", max_new_tokens=2, temperature=1e-6)
    assert answer.text == "ab"
    for outputs in bundle.graphs["decoder.onnx"].returned:
        assert {name: x.copies for name, x in outputs.items() if x.copies} == {"logits": 1}
    assert bundle.graphs["embed.onnx"].calls[-1]["input_ids"].tolist() == [[answer.token_ids[0]]]


@pytest.mark.parametrize("most", [1, 3])
def test_length_ends_the_answer_and_runs_no_step_in_vain(most: int, tmp_path: Path) -> None:
    bundle = fake(tmp_path, "abcdef")
    answer = pipeline(bundle).generate(IMAGE, "hi", max_new_tokens=most)
    assert (answer.text, answer.stop_reason) == ("abcdef"[:most], "length")
    assert len(bundle.graphs["decoder.onnx"].calls) == most


def test_stop_text_ends_the_answer_and_is_not_shown(tmp_path: Path) -> None:
    stream = pipeline(fake(tmp_path, "a#b##c")).stream(IMAGE, "hi", stop=("##",))
    assert list(stream) == ["a", "#b"]
    answer = stream.answer()
    assert (answer.text, answer.stop_reason, len(answer.token_ids)) == ("a#b", "stop", 5)


def test_held_back_text_is_shown_at_the_end(tmp_path: Path) -> None:
    assert list(pipeline(fake(tmp_path, "a#</s>")).stream(IMAGE, "hi", stop=("##",))) == ["a", "#"]
    stream = pipeline(fake(tmp_path, "né")).stream(IMAGE, "hi", max_new_tokens=2)
    assert list(stream) == ["n", "\ufffd"]


def test_characters_of_several_tokens_come_whole(tmp_path: Path) -> None:
    assert list(pipeline(fake(tmp_path, "a猫😀</s>")).stream(IMAGE, "hi")) == ["a", "猫", "😀"]


def test_seeded_sampling_repeats(tmp_path: Path) -> None:
    pipe = pipeline(fake(tmp_path, "abcdef"))

    def sample(seed: int) -> tuple[int, ...]:
        return pipe.generate(IMAGE, "hi", temperature=1.0, seed=seed, max_new_tokens=8).token_ids

    assert sample(1) == sample(1) != sample(2)


def test_encode_returns_what_was_kept(tmp_path: Path) -> None:
    visual = pipeline(fake(tmp_path)).encode(IMAGE, "hi")
    assert (visual.count, visual.features.shape, visual.packed_length) == (5, (5, HIDDEN), M)
    assert visual.positions.tolist() == [0, 3, 4, 9, 21]
    assert visual.tile_budgets.tolist() == [2, 1, 2]
    assert visual.tiles.grid == (1, 2)


def test_bundles_without_instruction_need_no_question(tmp_path: Path) -> None:
    bundle = fake(tmp_path, pruning={"instruction": "none"})
    pipe = pipeline(bundle)
    assert pipe.encode(IMAGE).count == 5
    assert not bundle.graphs["embed.onnx"].calls
    assert set(bundle.graphs["vision.onnx"].calls[0]) == {"pixel_values", "image_sizes", "tile_grid"}
    assert pipe.generate(IMAGE, "hi").text == "ok"
    with pytest.raises(ConfigError, match="alpha weighs the question, which this bundle does not look at"):
        pipe.encode(IMAGE, alpha=0.5)


def test_half_precision_is_fed_as_such(tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    graphs = json.loads(bundle.manifest.graphs.model_dump_json().replace("float32", "float16"))
    graphs["vision_encoder"]["inputs"][3]["dtype"] = "float32"
    bundle.manifest = bundle.manifest.model_validate(json.loads(bundle.manifest.to_json()) | {"graphs": graphs})
    assert pipeline(bundle).generate(IMAGE, "hi").text == "ok"  # the fakes check every dtype
    assert bundle.graphs["decoder.onnx"].calls[0]["inputs_embeds"].dtype == np.float16


def test_sequences_beyond_the_positions_are_refused(tmp_path: Path) -> None:
    pipe = pipeline(fake(tmp_path, "a", language_model={"max_position_embeddings": P + M + S + 4}))
    assert len(pipe.generate(IMAGE, "hi", max_new_tokens=5).token_ids) == 5
    with pytest.raises(
        PromptError, match=f"got {P + M + S} positions and 6 new tokens; expected at most {P + M + S + 4}"
    ):
        pipe.generate(IMAGE, "hi", max_new_tokens=6)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "much", "nan", [0.5], b"auto", 1j])
def test_alpha_is_a_fraction(alpha: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        pipeline(fake(tmp_path)).encode(IMAGE, "hi", alpha=alpha)


def test_auto_alpha_reaches_the_graph_as_a_negative_number(tmp_path: Path) -> None:
    bundle = fake(tmp_path, pruning={"alpha": "auto"})
    pipe = pipeline(bundle)
    pipe.encode(IMAGE, "hi")
    pipe.encode(IMAGE, "hi", alpha=0.25)
    assert pipe.encode(IMAGE, "hi", alpha="auto").alpha == 1  # what the graph says it used
    assert [call["alpha"].tolist() for call in bundle.graphs["vision.onnx"].calls] == [[-1], [0.25], [-1]]


RANGE = {"min": 1 / 6, "max": 0.75, "min_kept": 16, "max_kept": 44}


def test_keep_is_chosen_at_run_time_where_the_bundle_has_a_range(tmp_path: Path) -> None:
    """3 tiles of 16 tokens, and 8 newline rows."""
    levels = {"thumbnail": 4, "crops": 8, "newline": 8}
    bundle = fake(tmp_path, pruning={"keep_range": RANGE, "levels": levels, "num_kept": 20})
    pipe = pipeline(bundle)
    for keep in (None, 0.5, "1/3"):
        pipe.encode(IMAGE, "hi", keep=keep)
    assert [call["num_kept"].tolist() for call in bundle.graphs["vision.onnx"].calls] == [[20], [32], [24]]
    for keep in (0.9, 0.01, 0.0, "much", 1e-100, Fraction(10**400), True):
        with pytest.raises(ConfigError, match=r"keep"):
            pipe.encode(IMAGE, "hi", keep=keep)


def test_the_bundles_own_values_of_keep_are_always_taken(tmp_path: Path) -> None:
    """⌊0.3333333333333333 · 48⌋ is 15 and ⌊48 / 3⌋ is 16: the manifest's rounded fractions mean what they stand for."""
    levels = {"thumbnail": 5, "crops": 11, "newline": 8}
    bounds = {"min": 1 / 3, "max": 2 / 3, "min_kept": 24, "max_kept": 40}
    pruning = {"keep": 1 / 3, "keep_range": bounds, "levels": levels, "num_kept": 24}
    bundle = fake(tmp_path, pruning=pruning)
    for keep in (1 / 3, "1/3", 0.6666666666666666):
        pipeline(bundle).encode(IMAGE, "hi", keep=keep)
    assert [call["num_kept"].tolist() for call in bundle.graphs["vision.onnx"].calls] == [[24], [24], [40]]
    pipeline(fake(tmp_path)).encode(IMAGE, "hi", keep=0.25)  # of a fixed bundle its own, too


def test_options_of_a_batch_are_checked_before_anything_is_asked_for(tmp_path: Path) -> None:
    pipe = pipeline(fake(tmp_path))
    with pytest.raises(ConfigError, match="alpha"):
        pipe.stream_batch([], alpha=7)
    with pytest.raises(ConfigError, match="keep"):
        pipe.stream_batch([], keep=0.5)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        pipe.stream_batch([], max_new_tokens=0)
    with pytest.raises(PromptError, match="there is no question"):
        pipeline(fake(tmp_path, pruning={"instruction": "none"})).stream(IMAGE, None)  # type: ignore[arg-type]


def test_keep_is_refused_where_it_is_fixed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep is fixed in this bundle; got 0.5; expected 0.25"):
        pipeline(fake(tmp_path)).encode(IMAGE, "hi", keep=0.5)


def test_a_batch_is_one_call_and_its_empty_rows_repeat_the_last_image(tmp_path: Path) -> None:
    bundle = FakeBundle(tmp_path, ids("ok</s>"), batch=2)
    wide = Image.new("RGB", (40, 6))
    questions = [(IMAGE, "hi"), (wide, "hello"), (IMAGE, "who")]
    generations = list(pipeline(bundle).stream_batch(questions, alpha=0.25))
    assert [generation.visual.tiles.image_size for generation in generations] == [(8, 16), (6, 40), (8, 16)]
    first, second = bundle.graphs["vision.onnx"].calls
    assert first["image_sizes"].tolist() == [[8, 16], [6, 40]]
    assert first["prompt_mask"].sum(axis=1).tolist() == [P + S, P + S + 3]
    assert first["alpha"].tolist() == [0.25, 0.25]
    assert second["image_sizes"].tolist() == [[8, 16], [8, 16]]
    np.testing.assert_array_equal(second["prompt_embeds"][0], second["prompt_embeds"][1])


def test_answers_of_a_batch_are_made_as_they_are_asked_for(tmp_path: Path) -> None:
    bundle = FakeBundle(tmp_path, ids("ok</s>"), batch=2)
    generations = pipeline(bundle).stream_batch([(IMAGE, "a"), (IMAGE, "b"), (IMAGE, "c")])
    next(generations)
    assert len(bundle.graphs["vision.onnx"].calls) == 1
    assert not bundle.graphs["decoder.onnx"].calls


def test_problems_show_before_the_first_piece_is_asked_for(tmp_path: Path) -> None:
    pipe = pipeline(fake(tmp_path))
    with pytest.raises(PromptError, match="this bundle chooses tokens by the question"):
        pipe.encode(IMAGE)
    with pytest.raises(PromptError, match="question is empty"):
        pipe.stream(IMAGE, " ")
    with pytest.raises(ImageError, match="missing"):
        pipe.stream(tmp_path / "none.png", "hi")
    with pytest.raises(ConfigError, match="top_p"):
        pipe.stream(IMAGE, "hi", top_p=2.0)
    with pytest.raises(ConfigError, match="stop"):
        pipe.stream(IMAGE, "hi", stop="##")  # type: ignore[arg-type]


def test_decoders_that_overflow_are_reported(tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    decode = bundle.compute["decoder.onnx"]
    size = bundle.manifest.language_model.vocab_size
    broken = {"logits": np.full((1, 1, size), np.nan, np.float32), "next_tokens": np.array([[size]])}
    bundle.compute["decoder.onnx"] = lambda feeds: decode(feeds) | broken
    for temperature in (0.0, 1.0):
        with pytest.raises(BackendError, match="not finite"):
            pipeline(bundle).generate(IMAGE, "hi", temperature=temperature)


def test_graphs_of_another_contract_are_refused_at_once(tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    graphs = json.loads(bundle.manifest.graphs.model_dump_json())
    graphs["vision_encoder"]["inputs"][1]["name"] = "sizes"
    del graphs["vision_encoder"]["outputs"][2]
    text = json.dumps(json.loads(bundle.manifest.to_json()) | {"graphs": graphs})
    with pytest.raises(SchemaError, match=r"no input image_sizes.*unknown input sizes.*no output num_valid"):
        Manifest.from_json(text)
    bundle = fake(tmp_path)
    decoder = json.loads(bundle.manifest.graphs.model_dump_json())
    for values in decoder["decoder_model_merged"].values():
        for value in values if isinstance(values, list) else ():
            value["name"] = value["name"].replace("key_values.0", "key_values.7").replace("present.0", "present.7")
    bundle.manifest = bundle.manifest.model_validate(json.loads(bundle.manifest.to_json()) | {"graphs": decoder})
    with pytest.raises(SchemaError, match=r"unknown input past_key_values\.7\.key.*no input past_key_values\.0\.key"):
        pipeline(bundle)


def test_damaged_tokenizers_are_refused(tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"this version cannot use .*; got version: Field required"):
        pipeline(bundle)


def test_answers_that_a_cache_has_no_room_for_are_refused_at_once(tmp_path: Path) -> None:
    bundle = fake(tmp_path, "abcdefgh")
    pipe = pipeline(bundle)
    bundle.graphs["decoder.onnx"].largest = {"attention_mask": (1, P + 5 + S + 3)}
    with pytest.raises(
        PromptError, match=f"got {P + 5 + S} tokens and 5 new ones; expected at most {P + 5 + S + 3} tok"
    ):
        pipe.stream(IMAGE, "hi", max_new_tokens=5)
    assert pipe.generate(IMAGE, "hi", max_new_tokens=4).text == "abcd"
    assert bundle.graphs["decoder.onnx"].fed[-1]["attention_mask"].shape == (1, P + 5 + S + 3)


def test_one_pipeline_serves_threads(tmp_path: Path) -> None:
    pipe = pipeline(fake(tmp_path, "abcdefgh</s>"))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: pipe.generate(IMAGE, "hi").text, range(12)))
    assert answers == ["abcdefgh"] * 12


def test_unknown_backends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected onnxruntime"):
        Pipeline.load(tmp_path, backend="tensorflow")
    with pytest.raises(BundleError, match="is not a bundle"):
        Pipeline.load(tmp_path)


def test_runtime_loads_no_torch() -> None:
    code = (
        "import sys, ptp.runtime.cli, ptp.runtime.tables, ptp.runtime.picture, ptp.runtime.pipeline\n"
        "import ptp.runtime.backends.onnxruntime\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'onnxscript', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_command_line_starts_without_numpy() -> None:
    code = "import sys, ptp.runtime.cli; print('numpy' in sys.modules, 'onnxruntime' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False False\n"


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="top_k"):
        pipeline(fake(tmp_path)).generate(IMAGE, "hi", top_k=3)  # type: ignore[call-arg]


def test_a_service_may_bound_the_images_that_are_decoded(tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    with pytest.raises(ImageError, match="the image is too large; got 16x8 = 128 pixels; expected at most 100"):
        Pipeline(bundle.bundle, bundle.load_graph, max_pixels=100).generate(IMAGE, "hi")


@pytest.mark.parametrize("max_pixels", [0, -1, 100_000_001])
def test_a_bound_on_images_must_be_one(max_pixels: int, tmp_path: Path) -> None:
    bundle = fake(tmp_path)
    with pytest.raises(ConfigError, match=f"max_pixels is out of range; got {max_pixels}; expected 1 to 100000000"):
        Pipeline(bundle.bundle, bundle.load_graph, max_pixels=max_pixels)
