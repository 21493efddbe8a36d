"""Sampling equals transformers' warpers; stop strings never show."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from ptp.errors import BackendError, ConfigError
from ptp.runtime.sampling import Sampler, Sampling, StopText, softmax, warp


def random_logits(seed: int, size: int = 300, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.001, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_warping_equals_transformers(temperature: float, top_p: float, seed: int) -> None:
    logits = random_logits(seed)
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None])
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    ours = warp(logits, temperature, top_p)
    assert np.array_equal(np.isfinite(ours), np.isfinite(scores[0].numpy()))
    np.testing.assert_allclose(softmax(ours), scores[0].softmax(-1).numpy(), rtol=1e-5, atol=1e-9)


def test_top_p_leaves_what_it_must() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.25, 0.15], np.float32))
    assert np.isfinite(warp(logits, 1.0, 0.5)).tolist() == [False, True, False, False]
    assert np.isfinite(warp(logits, 1.0, 0.7)).tolist() == [False, True, True, False]
    assert np.isfinite(warp(logits, 1.0, 1e-9)).tolist() == [False, True, False, False]
    assert np.isfinite(warp(logits, 1.0, 1.0)).all()


def test_seed_repeats_and_random_numbers_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))

    def draws(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(logits) for _ in range(3000)]

    assert draws(1) == draws(1) != draws(2)
    np.testing.assert_allclose(np.bincount(draws(1)) / 3000, [0.6, 0.3, 0.1], atol=0.03)


def test_top_p_never_draws_an_excluded_token() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.6, seed=0))
    assert {sampler.choose(logits) for _ in range(100)} == {0}


@pytest.mark.parametrize("temperature", [1e-40, 1e-50, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert Sampler(Sampling(temperature=temperature, seed=0)).choose(random_logits(0)) == random_logits(0).argmax()


def test_a_huge_temperature_is_uniform_and_leaves_impossible_tokens_out() -> None:
    sampler = Sampler(Sampling(temperature=1e300, seed=0))
    assert {sampler.choose(np.array([0, -np.inf, 9], np.float32)) for _ in range(50)} == {0, 2}


@pytest.mark.parametrize("logits", [[1, np.nan, 0], [np.inf, 0, 1], [-np.inf] * 3])
def test_numbers_that_are_not_finite_are_an_error(logits: list[float]) -> None:
    with pytest.raises(BackendError, match="not finite"):
        Sampler(Sampling(temperature=1.0)).choose(np.array(logits, np.float32))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is out of range; got 0"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": ("a", "")}, "stop"),
        ({"stop": "###"}, "stop"),
    ],
)
def test_bad_options_are_refused(options: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Sampling(**options)


def run_stop(stop: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    watch, shown = StopText(stop), []
    for piece in pieces:
        shown.append(watch.push(piece))
        if watch.stopped:
            return shown, True
    return [*shown, watch.finish()], False


def test_a_possible_beginning_is_held_back() -> None:
    assert run_stop(("###",), ["a#", "#", "b", "#"]) == (["a", "", "##b", "", "#"], False)
    assert run_stop(("###",), ["a#", "#", "# and more"]) == (["a", "", ""], True)
    assert run_stop((), ["a", "b"]) == (["a", "b", ""], False)


def test_the_first_of_several_ends_the_text() -> None:
    assert run_stop(("xyz", "b"), ["abc xyz"]) == (["a"], True)
    assert run_stop(("aab",), ["aaa", "b"]) == (["a", ""], True)


@given(st.lists(st.text("ab#", max_size=4), max_size=12), st.lists(st.text("ab#", min_size=1, max_size=3), max_size=3))
def test_shown_text_is_the_text_before_the_first_stop(pieces: list[str], stop: list[str]) -> None:
    shown, stopped = run_stop(tuple(stop), pieces)
    text = "".join(pieces)
    assert stopped == any(s in text for s in stop)
    if not stopped:
        assert "".join(shown) == text
    else:
        assert not any(s in "".join(shown) for s in stop)
        assert text.startswith("".join(shown))
        assert any(text.startswith("".join(shown) + s) for s in stop)
