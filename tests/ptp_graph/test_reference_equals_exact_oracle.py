"""The readable reference keeps exactly the tokens that an oracle in exact fractions keeps (`exact_oracle.py`)."""

from fractions import Fraction

import numpy as np
import pytest
from exact_oracle import float32, keep_tokens_exactly, packed_by_transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptp.anyres import choose_grid
from ptp.ptp_graph.reference import keep_tokens
from ptp.ptp_graph.schedule import Schedule

TILE = 56
GRIDS = (
    ((1, 1),),
    ((6, 6),),
    ((1, 40),),
    ((40, 1),),
    ((3, 2), (2, 5)),
    ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
    ((6, 6), (1, 40), (40, 1), (1, 1)),
)
SMALLEST, LARGEST = 2.0**-149, float(np.finfo(np.float32).max)


def one_hot(random, shape):
    values = np.zeros(shape)
    values.flat[random.integers(values.size)] = 1
    return values


def rounding_edges(random, shape):
    """One large weight and others within a unit in the last place of where quantising turns them from k to k + 1.

    The large one is soon full, and then 1 or 2 of 8192 is all or nothing for the others.
    """
    top = np.float32(random.uniform(0.5, 1))
    edges = ((random.integers(0, 4, shape) + 0.5) / 8192 * top).astype(np.float32)
    edges = np.nextafter(edges, random.choice([-1, 0, 1], shape).astype(np.float32) + edges, dtype=np.float32)
    edges.flat[random.integers(edges.size)] = top
    return edges


# what numpy's generator and a shape make; float32 after that
WEIGHTS = {
    "random": lambda random, shape: random.random(shape),
    "ties": lambda random, shape: random.integers(0, 3, shape) / 2,
    "sevenths": lambda random, shape: random.integers(0, 8, shape) / 7,  # fused scores that differ by rounding only
    "zeros": lambda random, shape: np.zeros(shape),
    "equal": lambda random, shape: np.full(shape, 0.3),
    "one-hot": one_hot,
    "fp16": lambda random, shape: random.random(shape).astype(np.float16),
    "tiny": lambda random, shape: random.random(shape) * 1e-30,
    "subnormal": lambda random, shape: random.integers(0, 30, shape) * SMALLEST,
    "all magnitudes": lambda random, shape: 10 ** random.uniform(-44, 38, shape),
    "neighbours": lambda random, shape: 1 + random.integers(0, 4, shape) * 2.0**-23,
}
REGION_WEIGHTS = WEIGHTS | {
    "huge": lambda random, shape: random.random(shape) * LARGEST,
    "rounding edges": rounding_edges,
}
SCORES = WEIGHTS | {
    "negative": lambda random, shape: -random.random(shape),
    "huge": lambda random, shape: random.choice([-3e37, 0.0, 1.0, 3e37], shape),
    # one token at −1, and others so close to 0 that max − min rounds some of them together
    "absorbed": lambda random, shape: np.where(random.random(shape) < 0.2, -1, random.integers(0, 8, shape) * 2.0**-24),
    "to the limit": lambda random, shape: random.uniform(-0.5, 0.5, shape) * LARGEST,  # max − min is finite still
}
grids_of_any_shape = st.lists(
    st.integers(1, 40).flatmap(lambda rows: st.tuples(st.just(rows), st.integers(1, 40 // rows))),
    min_size=1,
    max_size=4,
)


@st.composite
def sizes(draw, grids, side):
    """Mostly images near the aspect ratio of one of the grids: others lose most of their tokens to unpadding."""
    rows, columns = draw(st.sampled_from(grids))
    factor = draw(st.integers(1, 100))

    def off_by(most):
        off = st.integers(-most, most)
        return st.tuples(off, off).map(
            lambda by: (max(1, rows * factor + by[0]), max(1, columns * factor + by[1])),
        )

    def whole_tokens(most):  # what unpadding leaves is an integer, and floats come out on either side of it
        left = st.integers(max(1, most - 2 * side), most)
        return left.map(lambda tokens: tokens * factor)

    return draw(
        off_by(1)
        | off_by(factor)
        | st.tuples(whole_tokens(rows * side), st.just(columns * side * factor))
        | st.tuples(st.just(rows * side * factor), whole_tokens(columns * side))
        | st.tuples(st.integers(1, 900), st.integers(1, 900))
        | st.sampled_from([(1, 1), (1, 3000), (3000, 1), (56, 112), (3000, 3000)])
    )


@st.composite
def cases(draw):
    side = draw(st.sampled_from(range(1, 7)))
    grids = draw(st.sampled_from(GRIDS) | grids_of_any_shape.map(tuple))
    size = draw(sizes(grids, side))
    grid = choose_grid(*size, grids, TILE)
    tiles = 1 + max(rows * columns for rows, columns in grids)
    thumbnail = draw(st.sampled_from(["ratio", "keep_all", "as_region"]))
    fewest = side**2 if thumbnail == "keep_all" else 1
    few = st.integers(fewest, fewest + tiles)  # about a token for each crop: the remainders decide
    some = st.integers(fewest, (1 + grid[0] * grid[1]) * side**2)  # beyond these, everything real is kept
    keep = draw(
        (few | some).map(lambda count: min(Fraction(1), Fraction(count, tiles * side**2)))
        | st.fractions(Fraction(fewest, tiles * side**2), 1)
        | st.just(Fraction(1))
    )
    return {
        "schedule": Schedule(
            keep=keep,
            side=side,
            grids=grids,
            newline=draw(st.sampled_from(["keep", "drop"])),
            thumbnail=thumbnail,
        ),
        "size": size,
        "grid": grid,
        "saliency": draw(st.sampled_from(sorted(SCORES))),
        "weights": draw(st.sampled_from(sorted(REGION_WEIGHTS))),
        "relevance": draw(st.none() | st.just("opposed") | st.sampled_from(sorted(SCORES))),
        "alpha": draw(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0])),
        "seed": draw(st.integers(0, 2**31)),
        "with_nan": draw(st.booleans()),
    }


def check(case):
    schedule, size, grid = case["schedule"], case["size"], case["grid"]
    random = np.random.default_rng(case["seed"])
    shape = (schedule.num_tiles, schedule.tokens_per_tile)
    saliency = SCORES[case["saliency"]](random, shape).astype(np.float32)
    weights = REGION_WEIGHTS[case["weights"]](random, shape[:1]).astype(np.float32)
    relevance = None
    if case["relevance"] == "opposed":  # at α = 0.5 nothing but the rounding tells one token from another
        relevance = -saliency
    elif case["relevance"]:
        relevance = SCORES[case["relevance"]](random, shape).astype(np.float32)
    if case["with_nan"]:  # what is not real may hold anything
        is_real = np.isin(np.arange(saliency.size), packed_by_transformers(size, grid, schedule.side)).reshape(shape)
        saliency[~is_real] = np.nan
        weights[~is_real.any(axis=1)] = np.nan
        if schedule.thumbnail != "as_region":
            weights[0] = np.nan
        if relevance is not None:
            relevance[~is_real] = np.nan
    arguments = (schedule, size, grid, saliency, weights, relevance, case["alpha"])
    assert vars(keep_tokens(*arguments)) == vars(keep_tokens_exactly(*arguments))


@settings(max_examples=300)
@given(cases())
def test_the_reference_equals_the_oracle(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=5000)
@given(cases())
def test_the_reference_equals_the_oracle_on_many_cases(case):
    check(case)


@given(st.fractions(-(2**100), 2**100) | st.floats(-(2.0**127), 2.0**127, width=64).map(Fraction))
@example(Fraction(1, 2**150))  # halfway between 0 and the smallest float32
@example(Fraction(3, 2**150))
@example(1 + Fraction(1, 2**24))
@example(1 + Fraction(3, 2**24))
@example(Fraction(2) ** 24 - Fraction(1, 2))
@example(Fraction(0))
def test_the_oracle_rounds_as_float32_does(exact):
    above = np.float32(np.inf)
    found = np.float32(float32(exact))
    assert float(found) == float32(exact)
    distance = abs(Fraction(float(found)) - exact)
    for neighbour in (np.nextafter(found, -above), np.nextafter(found, above)):
        other = abs(Fraction(float(neighbour)) - exact)
        assert distance < other or (distance == other and not int(found.view(np.int32)) & 1)
