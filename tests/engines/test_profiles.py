"""Optimisation profiles: what they span, and that they agree with themselves."""

import pytest
from fake_bundle import KEPT, MAX_PROMPT, FakeBundle

from ptp.engines.profiles import default_max_context, llm_profiles, vision_profiles
from ptp.errors import ConfigError

LONGEST = MAX_PROMPT + KEPT


def manifest(folder, **changes):
    return FakeBundle(folder, script=[2], changes=changes).manifest


def a_range(folder):
    bounds = {"min": 0.2, "max": 0.5, "min_kept": 5, "max_kept": 9}
    return manifest(folder, pruning={"keep_range": bounds})


def test_the_default_context_holds_prompt_visual_tokens_and_an_answer(tmp_path):
    assert default_max_context(manifest(tmp_path)) == LONGEST + 256
    assert default_max_context(manifest(tmp_path, language_model={"max_position_embeddings": 99})) == 99
    assert default_max_context(a_range(tmp_path)) == MAX_PROMPT + 9 + 256


def test_the_vision_engine_has_a_profile_of_no_shapes_or_of_the_values_of_k(tmp_path):
    (fixed,) = vision_profiles(manifest(tmp_path))
    assert (fixed.name, fixed.shapes) == ("vision", {})
    (open_k,) = vision_profiles(a_range(tmp_path))
    assert open_k.shapes["num_kept"].model_dump() == {"min": (5,), "opt": (KEPT,), "max": (9,)}


@pytest.mark.parametrize("context", [LONGEST + 1, LONGEST + 100, 1000])
def test_prefill_takes_every_prompt_and_decode_every_step_after_it(tmp_path, context):
    described = manifest(tmp_path)
    prefill, decode = llm_profiles(described, context)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    for profile, new, past in ((prefill, (1, LONGEST), (0, 0)), (decode, (1, 1), (1, context - 1))):
        shapes = profile.shapes
        assert set(shapes) == {spec.name for spec in described.graphs.decoder_model_merged.inputs}
        assert (shapes["inputs_embeds"].min[1], shapes["inputs_embeds"].max[1]) == new
        cache = shapes["past_key_values.1.value"]
        assert (cache.min[2], cache.max[2]) == past
        assert {shapes[x].max for x in shapes if x.startswith("past")} == {cache.max}
        for values in shapes.values():
            assert all(
                low <= usual <= high for low, usual, high in zip(values.min, values.opt, values.max, strict=True)
            )
            assert values.min[0] == values.max[0] == 1
        for bound in ("min", "opt", "max"):  # an engine whose bounds contradict each other fails at run time
            embeds, mask, positions, past_now = (
                getattr(shapes[name], bound)
                for name in ("inputs_embeds", "attention_mask", "position_ids", "past_key_values.0.key")
            )
            assert mask[1] == embeds[1] + past_now[2]
            assert positions == embeds[:2]
    assert prefill.shapes["inputs_embeds"].opt[1] == MAX_PROMPT // 4 + KEPT


@pytest.mark.parametrize("context", [0, -5, LONGEST, 1001])
def test_a_context_without_room_or_beyond_the_models_positions_is_refused(tmp_path, context):
    with pytest.raises(ConfigError, match=rf"got {context}; expected {LONGEST + 1} .* to the model's 1000"):
        llm_profiles(manifest(tmp_path), context)
