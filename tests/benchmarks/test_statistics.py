"""Intervals against published values, formulas, every possible draw, and their own promise of 95 %."""

from itertools import product
from math import sqrt

import numpy as np
import pytest

from ptp.benchmarks.evaluation.statistics import Resampler, wilson


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson(right, of, low, high):
    interval = wilson(right / of, of)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((right / of, low, high), abs=1e-4)


def test_one_question_about_each_image_right_or_wrong_is_wilson():
    scores = np.array([1.0] * 30 + [0.0] * 10)
    assert Resampler([str(i) for i in range(40)]).accuracy(scores) == wilson(0.75, 40)


def test_every_possible_draw():
    """Four images of different sizes: the 256 draws are equally likely, so that their quantiles are known."""
    sums, sizes = np.array([1.0, 2.0, 0.0, 3.0]), np.array([1, 3, 2, 5])
    images, scores = [], []
    for image, (right, size) in enumerate(zip(sums, sizes, strict=True)):
        images += [f"image{image}"] * int(size)
        scores += [1.0] * int(right) + [0.0] * int(size - right)
    means = np.array([sums[list(draw)].sum() / sizes[list(draw)].sum() for draw in product(range(4), repeat=4)])
    interval = Resampler(images).accuracy(np.array(scores))
    assert interval.mean == pytest.approx(6 / 11)
    # the shares of draws beyond each end, and at or beyond it, give or take four standard errors of 2000 draws
    slack, near = 4 * sqrt(0.025 * 0.975 / 2000), 1e-6
    assert np.mean(means < interval.low - near) - slack <= 0.025 <= np.mean(means <= interval.low + near) + slack
    assert np.mean(means > interval.high + near) - slack <= 0.025 <= np.mean(means >= interval.high - near) + slack


def test_questions_about_one_image_are_one_observation():
    rng = np.random.default_rng(1)
    right = rng.uniform(size=400) < 0.7
    images, scores = np.repeat(np.arange(400).astype(str), 5), np.repeat(right.astype(float), 5)
    interval = Resampler(list(images)).accuracy(scores)
    half = 1.96 * sqrt(right.mean() * (1 - right.mean()) / 400)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.06)
    alone = Resampler([str(i) for i in range(2000)]).accuracy(scores)
    assert (alone.high - alone.low) * 2 < interval.high - interval.low


def test_the_interval_contains_the_truth_as_often_as_it_says():
    """Images of unequal sizes and difficulty; the truth is the mean over all that could have been drawn."""
    rng, resampler_images = np.random.default_rng(2), np.repeat(np.arange(80).astype(str), 6)
    resampler, hits, repeats = Resampler(list(resampler_images)), 0, 400
    for _ in range(repeats):
        ease = rng.beta(2, 1, size=80)  # mean 2/3
        interval = resampler.accuracy((rng.uniform(size=480) < np.repeat(ease, 6)).astype(float))
        hits += interval.low <= 2 / 3 <= interval.high
    assert 0.91 <= hits / repeats <= 0.98


def test_a_difference_is_paired():
    """Two methods that fail on the same hard images: their difference is surer than either accuracy."""
    rng = np.random.default_rng(3)
    images = [str(i) for i in range(300)]
    ours = (rng.uniform(size=300) < 0.6).astype(float)
    theirs = ours.copy()
    theirs[np.flatnonzero(ours)[:20]] = 0
    resampler = Resampler(images)
    interval = resampler.difference(ours, theirs)
    share = 20 / 300
    assert interval.mean == pytest.approx(share)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * sqrt(share * (1 - share) / 300), rel=0.08)
    assert interval.low > 0
    assert interval.high - interval.low < resampler.accuracy(ours).high - resampler.accuracy(ours).low
    reverse = resampler.difference(theirs, ours)
    assert (reverse.mean, reverse.low, reverse.high) == pytest.approx((-share, -interval.high, -interval.low), abs=1e-6)


Z2 = 1.959963984540054**2


def test_all_right_is_as_sure_as_there_are_images():
    images = [str(i // 4) for i in range(200)]  # 50 images
    resampler = Resampler(images)
    right, wrong = resampler.accuracy(np.ones(200)), resampler.accuracy(np.zeros(200))
    assert (right.mean, right.low, right.high) == pytest.approx((1, 50 / (50 + Z2), 1))
    assert (wrong.mean, wrong.low, wrong.high) == pytest.approx((0, 0, Z2 / (50 + Z2)))


def test_no_difference_anywhere_is_no_proof_of_equality():
    scores = np.tile([1.0, 0.0, 0.0, 1.0], 10)
    interval = Resampler([str(i // 2) for i in range(40)]).difference(scores, scores)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0, -Z2 / (20 + Z2), Z2 / (20 + Z2)))


def test_numbers_repeat_and_the_order_of_questions_does_not_matter_within_an_image():
    images = ["a", "a", "b", "b", "c", "c"]
    scores = np.array([1.0, 0.0, 1.0, 1.0, 0.3, 0.0])
    swapped = scores[[1, 0, 3, 2, 5, 4]]
    assert Resampler(images).accuracy(scores) == Resampler(images).accuracy(swapped)
