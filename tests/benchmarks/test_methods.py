"""Every method keeps exactly its budget and differs from its neighbours as its paper says."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from ptp.anyres import PackedLayout, choose_grid
from ptp.benchmarks.methods import METHODS, Choice, View, with_newlines
from ptp.benchmarks.methods.budget import share
from ptp.benchmarks.methods.dart import Dart
from ptp.benchmarks.methods.fastervlm import FasterVlm
from ptp.benchmarks.methods.globalcom2 import GlobalCom2, enlarged
from ptp.benchmarks.methods.hired import Hired
from ptp.benchmarks.methods.uniform_grid import even_lattice
from ptp.benchmarks.methods.visionzip import VisionZip
from ptp.errors import ConfigError
from ptp.ptp_graph.reference import NEWLINE

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
DEPTH, WIDTH = 4, 3


def random_view(height=64, width=64, side=2, grid=(2, 2), seed=0, ties=False):
    """Return a view of random values; without padding by default."""
    random = np.random.default_rng(seed)
    tiles, length = 1 + grid[0] * grid[1], PackedLayout(height=height, width=width, grid=grid, side=side).length

    def scores(*shape):
        return random.integers(0, 2, shape).astype(np.float32) if ties else random.random(shape).astype(np.float32)

    return View(
        image_size=(height, width),
        grid=grid,
        side=side,
        depth=DEPTH,
        features=random.normal(size=(length, WIDTH)).astype(np.float32),
        cls_attention={layer: scores(tiles, side * side) for layer in (0, DEPTH - 2, DEPTH - 1)},
        cls_logits={layer: scores(tiles, side * side) - 0.5 for layer in (DEPTH - 2, DEPTH - 1)},
        keys=scores(tiles, side * side, 2) - 0.5,
        hidden=random.normal(size=(tiles, side * side, WIDTH)).astype(np.float32),
        project=lambda hidden: 10 * hidden,
        question_attention=scores(length),
        text_embeds=random.normal(size=(7, WIDTH)).astype(np.float32),
    )


def changed(view, **values):
    """Return a view with other values."""
    return View(**{name: getattr(view, name) for name in view.__dataclass_fields__} | values)


def attention(view, **tiles):
    """Return (tiles, N) scores: 0 but for the tiles given."""
    scores = np.zeros((view.num_tiles, view.side**2), np.float32)
    for name, values in tiles.items():
        scores[int(name[1:])] = values
    return scores


def kept_sources(view, choice):
    return view.sequence[choice.positions].tolist()


def kept_of_tiles(view, choice):
    return np.bincount(view.sequence[choice.positions] // view.side**2, minlength=view.num_tiles).tolist()


# -- every method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=60)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    side=st.sampled_from([1, 2, 4, 5]),
    part=st.one_of(st.just(1.0), st.floats(0, 1.2)),
    seed=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
)
@example(height=1, width=3000, side=4, part=0.5, seed=0, ties=False)  # no crop has a real token
@example(height=3000, width=1, side=4, part=1.0, seed=0, ties=True)
@example(height=56, width=56, side=4, part=0.0, seed=0, ties=True)
def test_exactly_the_budget_is_kept(name, height, width, side, part, seed, ties):
    view = random_view(height, width, side, choose_grid(height, width, GRIDS, 56), seed % 1000, ties)
    real = len(view.positions)
    budget = max(1, int(part * real))
    choice = METHODS[name].choose(view, budget, seed)
    assert len(choice.positions) == min(budget, real)
    assert (np.diff(choice.positions) > 0).all()
    assert (view.sequence[choice.positions] != NEWLINE).all()
    if budget >= real:
        assert choice.positions.tolist() == view.positions.tolist()
    if choice.features is not None:
        assert choice.features.shape == (len(choice.positions), WIDTH)
    again = METHODS[name].choose(view, budget, seed)
    assert again.positions.tolist() == choice.positions.tolist()


def test_the_table_holds_each_method_under_its_name():
    assert all(name == method.name for name, method in METHODS.items())
    asking = {name for name, method in METHODS.items() if method.sees_question}
    assert asking == {"dart", "fastv"}
    assert {name for name, method in METHODS.items() if method.prunes_after} == {"fastv"}


def test_who_does_not_see_the_question_chooses_without_it():
    view = random_view()
    blind = changed(view, question_attention=None, text_embeds=None)
    for method in METHODS.values():
        if method.sees_question:
            with pytest.raises(ConfigError, match="does not have"):
                method.choose(blind, 7)
        else:
            assert method.choose(blind, 7).positions.tolist() == method.choose(view, 7).positions.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_padding_is_never_looked_at(name):
    """Scores of tokens that unpadding removes may be anything."""
    view = random_view(30, 90, 4, (2, 2), seed=3)
    padding = np.setdiff1d(np.arange(view.num_tiles * 16), view.sequence)
    assert len(padding)

    def spoilt(values):
        rows = values.copy().reshape(-1, *values.shape[2:])
        rows[padding] = 1e6
        return rows.reshape(values.shape)

    other = changed(
        view,
        cls_attention={layer: spoilt(values) for layer, values in view.cls_attention.items()},
        cls_logits={layer: spoilt(values) for layer, values in view.cls_logits.items()},
        **{field: spoilt(getattr(view, field)) for field in ("keys", "hidden")},
    )
    one, two = (METHODS[name].choose(v, 20) for v in (view, other))
    assert one.positions.tolist() == two.positions.tolist()
    if one.features is not None:
        np.testing.assert_array_equal(one.features, two.features)


def test_all_methods_choose_differently():
    view = random_view(side=4)
    choices = {name: tuple(method.choose(view, 24).positions) for name, method in METHODS.items()}
    same = {"visionzip", "visionzip_mean", "visionzip_unmerged"}  # these differ in features only
    assert len(set(choices.values())) == len(METHODS) - len(same) + 1
    merged = {name: METHODS[name].choose(view, 24).features for name in same}
    assert merged["visionzip_unmerged"] is None
    assert not np.allclose(merged["visionzip"], merged["visionzip_mean"])


def test_newlines_are_added_by_the_caller():
    view = random_view()
    features = np.full((2, WIDTH), 5, np.float32)
    positions, rows = with_newlines(view, Choice(positions=np.array([1, 5]), features=features))
    assert positions.tolist() == [1, 5, 8, 13, 18, 23]
    np.testing.assert_array_equal(rows[:2], features)
    np.testing.assert_array_equal(rows[2:], view.features[[8, 13, 18, 23]])


def test_a_view_refuses_values_of_another_image():
    view = random_view()
    with pytest.raises(ConfigError, match="features does not fit"):
        changed(view, features=view.features[:-1])
    with pytest.raises(ConfigError, match="keys does not fit"):
        changed(view, keys=view.keys[:-1])
    with pytest.raises(ConfigError, match="cls_attention of a block is missing"):
        view.cls(1)


def test_a_budget_is_shared_in_proportion_and_never_beyond_a_capacity():
    assert share(10, [1, 1, 3], [9, 9, 9]) == [2, 2, 6]
    assert share(10, [1, 1, 3], [9, 9, 4]) == [3, 3, 4]
    assert share(5, [0, 1], [9, 3]) == [2, 3]  # a weight of 0 waits until the others are full
    assert share(5, [0, 0], [9, 9]) == [3, 2]
    assert share(99, [0.0, 0.1], [2, 3]) == [2, 3]
    assert share(3, [], []) == []


# -- each method -------------------------------------------------------------------------------------------------------


def test_random_depends_on_the_seed_alone():
    one, other = random_view(seed=1), random_view(seed=2)
    method = METHODS["random"]
    assert method.choose(one, 6, 5).positions.tolist() == method.choose(other, 6, 5).positions.tolist()
    assert len({tuple(method.choose(one, 6, seed).positions) for seed in range(10)}) > 5
    drawn = np.concatenate([method.choose(one, 6, seed).positions for seed in range(500)])
    counts = np.bincount(drawn, minlength=len(one.sequence))[one.positions]
    assert counts.min() > 100  # 150 expected of each of 20
    assert counts.max() < 200


def test_uniform_is_a_lattice():
    assert even_lattice(4, 4, 4).tolist() == [5, 7, 13, 15]
    assert even_lattice(2, 6, 3).tolist() == [7, 9, 11]  # one row is enough
    assert even_lattice(3, 3, 9).tolist() == list(range(9))
    assert even_lattice(3, 2, 5).tolist() == [1, 2, 3, 4, 5]
    assert even_lattice(0, 0, 0).tolist() == []
    view = random_view(side=4)  # 16 + 64 tokens, so 4 + 16
    choice = METHODS["uniform"].choose(view, 20)
    assert kept_of_tiles(view, choice) == [4, 4, 4, 4, 4]
    columns = {(position - 16) % 9 for position in choice.positions if position >= 16}
    assert columns == {1, 3, 5, 7}


def test_the_thumbnail_comes_first():
    view = random_view(side=4)
    assert kept_of_tiles(view, METHODS["thumbnail"].choose(view, 7)) == [7, 0, 0, 0, 0]
    assert kept_of_tiles(view, METHODS["thumbnail"].choose(view, 20)) == [16, 1, 1, 1, 1]


def test_fastervlm_ranks_inside_a_tile_or_in_the_image():
    view = random_view()
    scores = attention(view, t0=[0.1, 0.4, 0.3, 0.2], t1=[0.9, 0.8, 0.7, 0.6], t2=[0, 0, 0.1, 0], t4=[0.1, 0, 0, 0])
    view = changed(view, cls_attention={DEPTH - 2: scores})
    assert sorted(kept_sources(view, FasterVlm().choose(view, 5))) == [1, 4, 10, 12, 16]
    assert sorted(kept_sources(view, FasterVlm(per_tile=False).choose(view, 5))) == [1, 4, 5, 6, 7]


def test_hired_divides_by_the_early_block_and_selects_by_the_late_one():
    view = random_view(side=4)
    early = attention(view, t0=0.01)
    early[0, [0, 1, 4, 5, 2, 3]] = 0.9  # all four of crop 1's cell, two of crop 2's
    early[0, [14, 15]] = 0.8  # two of crop 4's; ⌊(1 − ½) · 16⌋ = 8 tokens count
    late = np.tile(np.arange(16, dtype=np.float32), (5, 1))
    view = changed(view, cls_attention={0: early, DEPTH - 2: late})
    assert Hired().budgets(view, 16) == [8, 4, 2, 0, 2]
    kept = sorted(kept_sources(view, Hired().choose(view, 16)))
    assert kept == [*range(8, 16), *range(28, 32), 46, 47, 78, 79]
    assert Hired(alpha=0.25).budgets(view, 16)[0] == 4
    assert Hired().budgets(view, 40) == [16, 12, 6, 0, 6]  # α · 40 is more than the thumbnail has
    assert Hired().budgets(view, 79) == [16, 16, 16, 15, 16]


def test_globalcom2_divides_by_the_thumbnail_and_selects_by_both():
    view = random_view(side=4)
    logits = attention(view)
    logits[0, [0, 1, 4, 5]] = 10 * np.log(2) / 4  # the cell of crop 1 sums to 10 · ln 2: σ = 2/5, 1/5, 1/5, 1/5
    thumbnail = logits[0].reshape(4, 4)
    assert GlobalCom2().budgets(view, 40, thumbnail) == [8, 9, 8, 8, 7]  # 8, 9.2, 7.6, 7.6, 7.6: 1 + 2/5 − 1/4, …
    assert GlobalCom2(temperature=1).budgets(view, 40, thumbnail) == [8, 14, 6, 6, 6]

    padded = random_view(30, 90, 4)  # 4 real tokens in each crop
    assert GlobalCom2().budgets(padded, 16, np.zeros((4, 4))) == [8, 2, 2, 2, 2]

    # crop 4 alone would keep its token 0; the thumbnail commands the token under its own maximum
    logits = attention(view, t4=[0.6, *[0.1] * 14, 0.5])
    logits[0, 15] = 1.0
    commanded = changed(view, cls_logits={DEPTH - 1: logits})
    assert kept_of_tiles(commanded, GlobalCom2().choose(commanded, 5)) == [1, 1, 1, 1, 1]
    assert 64 + 15 in kept_sources(commanded, GlobalCom2().choose(commanded, 5))
    assert 64 + 0 in kept_sources(commanded, GlobalCom2(alpha=0).choose(commanded, 5))


def test_globalcom2_reads_logits_or_attention():
    view = random_view(side=4, seed=1)
    by_attention = changed(view, cls_logits={DEPTH - 2: view.logits(-2)})
    assert len(METHODS["globalcom2_penultimate"].choose(by_attention, 9).positions) == 9
    assert len(METHODS["globalcom2_softmax"].choose(by_attention, 9).positions) == 9
    with pytest.raises(ConfigError, match="cls_logits"):
        METHODS["globalcom2"].choose(by_attention, 9)


@pytest.mark.parametrize("size", [(8, 8), (3, 7), (1, 1), (5, 12)])
def test_enlarging_is_torchs_bilinear(size):
    scores = np.random.default_rng(0).random((4, 4))
    expected = interpolate(torch.from_numpy(scores)[None, None], size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(enlarged(scores, *size), expected[0, 0].numpy(), rtol=1e-12)
    assert enlarged(scores, 0, 5).shape == (0, 5)


def test_visionzip_merges_the_rest_into_evenly_spaced_targets():
    view = random_view(side=4)
    scores = attention(view, t0=np.arange(16))
    scores[1:] = 0.5  # ties: the first tokens dominate
    keys = np.zeros((5, 16, 2), np.float32)
    keys[..., 0] = 1
    keys[0, 5:9] = [0, 3]  # joins the target with that direction, whatever its length
    hidden = np.zeros((5, 16, WIDTH), np.float32)
    hidden[0] = np.arange(16)[:, None]
    view = changed(view, cls_attention={DEPTH - 2: scores}, keys=keys, hidden=hidden)
    # 13 of each tile: ⌊13 · 10/64 + ½⌋ = 2 contextual, 11 dominant (5 … 15), of the rest 0 … 4 targets 0 and 2
    keys[0, [2, 3]] = [0, 1]
    keys[0, 0] = [5, 4]  # a long key; its cosine with token 3's is below 1 all the same
    choice = VisionZip().choose(view, 65)
    kept = kept_sources(view, choice)
    assert [source for source in kept if source < 16] == [0, 2, *range(5, 16)]
    rows = dict(zip(kept, choice.features, strict=True))
    np.testing.assert_allclose(rows[0], 10 * (0 + (1 + 4) / 2))  # the projector of this view multiplies by 10
    np.testing.assert_allclose(rows[2], 10 * (2 + 3))
    np.testing.assert_array_equal(rows[5], view.features[5])
    mean = dict(zip(kept, VisionZip(merge="mean").choose(view, 65).features, strict=True))
    np.testing.assert_allclose(mean[0], 10 * (0 + 1 + 4) / 3)
    np.testing.assert_allclose(mean[2], 10 * (2 + 3) / 2)
    unmerged = VisionZip(merge="none").choose(view, 65)
    assert unmerged.positions.tolist() == choice.positions.tolist()
    assert unmerged.features is None


def test_visionzip_without_contextual_tokens_is_fastervlm():
    view = random_view(side=4)
    budget = 5 * 3  # ⌊3 · 10/64 + ½⌋ = 0
    assert VisionZip().choose(view, budget).positions.tolist() == FasterVlm().choose(view, budget).positions.tolist()


def test_dart_drops_duplicates_of_its_pivots():
    view = random_view()
    features = np.tile(np.array([1, 0, 0], np.float32), (24, 1))
    features[0] = [9, 0, 0]  # the pivot; the others are its duplicates but for three
    features[6] = [0.5, 0.5, 0]
    features[11] = [0, 1, 0]
    features[20] = [-1, 0, 0]
    features[23] = [-50, 0, 0]  # a newline's row counts neither as pivot nor as candidate
    view = changed(view, features=features)
    one = Dart(image_pivots=1, text_pivots=0)
    assert one.choose(view, 4).positions.tolist() == [0, 6, 11, 20]
    assert one.choose(view, 2).positions.tolist() == [0, 20]
    # with a text pivot like token 20, the half that it decides goes to the first duplicates of the image's pivot
    asked = changed(view, text_embeds=np.array([[0, 0.1, 0], [-7, 0, 0]], np.float32))
    assert Dart(image_pivots=1, text_pivots=1).choose(asked, 5).positions.tolist() == [0, 1, 2, 11, 20]


def test_dart_meets_small_budgets_with_pivots_alone():
    features = np.zeros((24, WIDTH), np.float32)
    features[[1, 2, 3]] = [[-3, 3, -3], [8, 0, 0], [1, 0, 0]]  # L1 norms 9, 8, 1
    view = changed(random_view(), features=features)
    assert Dart().choose(view, 1).positions.tolist() == [1]
    assert Dart().choose(view, 3).positions.tolist() == [1, 2, 3]


def test_fastv_follows_the_last_prompt_token_and_skips_newlines():
    view = random_view()
    scores = np.zeros(24, np.float32)
    scores[[2, 9, 23]] = [0.2, 0.3, 0.9]  # 23 is a newline
    view = changed(view, question_attention=scores)
    assert METHODS["fastv"].choose(view, 3).positions.tolist() == [0, 2, 9]
