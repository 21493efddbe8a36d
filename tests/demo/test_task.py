"""The demo's task: scenes that are the same everywhere, questions that have one answer, details that need the crops."""

import hashlib
import json
import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from numpy.random import RandomState

from ptp.anyres import choose_grid, resized_inside
from ptp.demo.items import GLYPH_HEIGHTS, OBJECT_SIZES
from ptp.demo.labels import crop_scale, crop_shift, model_view, token_labels
from ptp.demo.layout import GRIDS, TILE, draw_layout
from ptp.demo.materials import BACKGROUNDS, COLOURS, MATERIALS, PICTURES, SHAPES, load_background, load_picture, plural
from ptp.demo.scenes import Box, Object
from ptp.demo.task import HELDOUT_SEED, SPLITS, Scene, blind_guess, heldout_seed, main, make_questions, make_scene
from ptp.errors import ConfigError

COUNT = 200


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene("validation", index) for index in range(COUNT)]


def image_size(scene: Scene) -> tuple[int, int]:
    return scene.image.height, scene.image.width


def gap(one: Box, other: Box) -> float:
    """Distance between two boxes; negative where they overlap."""
    across = max(one.left, other.left) - min(one.right, other.right)
    down = max(one.top, other.top) - min(one.bottom, other.bottom)
    return max(across, down)


def answers(objects: tuple[Object, ...], text: str) -> set[str]:
    """Read a question as a person would, and return every answer that the objects allow."""
    words = text.rstrip("?").split()
    names = {**{name: name for name in PICTURES}, **{plural(name): name for name in PICTURES}}
    if text.startswith("Which"):
        colour, shape = words[-2:]
        return {o.glyph for o in objects if (o.colour, o.shape) == (colour, shape)}
    if text.startswith("How many"):
        return {str(sum(o.name == names[words[2]] for o in objects))}
    if text.startswith("Is there"):
        return {"yes" if any(o.name == words[-1] for o in objects) else "no"}
    (asked,) = [o for o in objects if o.name == words[-1]]
    others = [o for o in objects if o is not asked]
    if "left of" in text:
        others = [o for o in others if o.box.centre[0] < asked.box.left]
    nearest = sorted(others, key=lambda o: gap(o.box, asked.box))
    assert gap(nearest[1].box, asked.box) > 2 * gap(nearest[0].box, asked.box) if len(nearest) > 1 else True
    return {nearest[0].name}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_scene_depends_on_split_and_index_only(split: str) -> None:
    one, two = make_scene(split, 7), make_scene(split, 7)
    assert (one.objects, one.questions, one.grid) == (two.objects, two.questions, two.grid)
    assert one.image.tobytes() == two.image.tobytes()
    assert make_scene(split, 8).objects != one.objects
    assert make_questions(split, 7) == one.questions


def test_splits_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {tuple(make_scene(split, i).objects) for split in ("train", "validation", "test") for i in range(5)}
    for seed in ("0", "1", str(1 << 40)):
        monkeypatch.setenv(HELDOUT_SEED, seed)
        seen |= {tuple(make_scene("heldout", i).objects) for i in range(5)}
    assert len(seen) == 30
    assert len(set(SPLITS.values())) == len(SPLITS)


@pytest.mark.parametrize("value", [None, "", "x", "-1", "1.5", "1_0", "٣", "9" * 101])
def test_heldout_needs_its_seed(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HELDOUT_SEED, raising=False)
    if value is not None:
        monkeypatch.setenv(HELDOUT_SEED, value)
    with pytest.raises(ConfigError, match="PTP_EVAL_SEED") as caught:
        make_scene("heldout", 0)
    assert "\n" not in str(caught.value)


def test_heldout_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HELDOUT_SEED, "12")
    assert heldout_seed() == 12


@pytest.mark.parametrize(("split", "index"), [("exam", 0), ("test", -1), ("test", 1 << 32)])
def test_unknown_scenes_are_refused(split: str, index: int) -> None:
    with pytest.raises(ConfigError, match="there is no such"):
        make_scene(split, index)


def test_objects_stay_apart_and_inside(scenes: list[Scene]) -> None:
    for scene in scenes:
        for one, other in combinations(scene.objects, 2):
            assert gap(one.box, other.box) > 0
        for box in (o.box for o in scene.objects):
            assert box.left >= 0
            assert box.top >= 0
            assert box.right <= scene.image.width
            assert box.bottom <= scene.image.height


def test_the_boxes_are_where_something_was_drawn(scenes: list[Scene]) -> None:
    """A sign's hue fills its box, and little of the rest of the image."""
    inside, outside = [], []
    for scene in scenes[:15]:
        pixels = np.asarray(scene.image, np.int16)
        for sign in (o for o in scene.objects if o.colour in ("red", "orange", "yellow", "green", "blue", "purple")):
            box = sign.box
            difference = pixels - np.array(COLOURS[sign.colour], np.int16)
            # blotches change all three channels alike, so that only the differences between channels tell
            near = np.ptp(difference, axis=2) < 60
            inside.append(near[round(box.top) : round(box.bottom), round(box.left) : round(box.right)].mean())
            outside.append(near.mean())
    assert np.mean(inside) > 0.3
    assert np.mean(inside) > 3 * np.mean(outside)


def test_looks_and_names_are_unique(scenes: list[Scene]) -> None:
    for scene in scenes:
        signs = [o for o in scene.objects if o.kind == "sign"]
        assert len({(o.colour, o.shape) for o in signs}) == len({o.glyph for o in signs}) == len(signs) >= 3
        counted = {plural(name): name for name in PICTURES}
        allowed = {counted[q.text.split()[2]] for q in scene.questions if q.kind == "count"}
        names = Counter(o.name for o in scene.objects if o.kind == "picture")
        assert {name for name, times in names.items() if times > 1} <= allowed
        assert 5 <= len(scene.objects) <= 14
    assert np.mean([len(scene.objects) for scene in scenes if scene.grid == (2, 2)]) > 9


def test_every_answer_is_the_only_one(scenes: list[Scene]) -> None:
    for scene in scenes:
        texts = [question.text for question in scene.questions]
        assert len(set(texts)) == len(texts)
        for question in scene.questions:
            assert answers(scene.objects, question.text) == {question.answer}, question
            assert question.answer.split() == [question.answer]
            assert set(question.targets) <= {o.box for o in scene.objects}
            assert bool(question.targets) == (question.answer != "no")


def test_every_grid_and_padding_occurs(scenes: list[Scene]) -> None:
    found = set()
    for scene in scenes:
        height, width = image_size(scene)
        rows, columns = scene.grid
        assert choose_grid(height, width, GRIDS, TILE) == scene.grid
        assert 450 <= max(height, width) <= 1400
        new_height, new_width = resized_inside(height, width, rows * TILE, columns * TILE)
        direction = "rows" if new_height < rows * TILE - 1 else "columns" if new_width < columns * TILE - 1 else ""
        found.add((scene.grid, direction))
    padded = {(grid, direction) for grid in ((2, 2), (1, 3), (3, 1)) for direction in ("rows", "columns")}
    assert found >= padded | {((1, 2), ""), ((2, 1), "")}


def test_objects_fit_tokens_and_glyphs_need_the_crops(scenes: list[Scene]) -> None:
    for scene in scenes:
        height, width = image_size(scene)
        scale = float(crop_scale(image_size(scene), scene.grid, TILE)[0])
        shrunk = min(TILE / width, TILE / height)
        for o in scene.objects:
            longer = max(o.box.width, o.box.height) * scale
            assert OBJECT_SIZES[0] - 0.3 <= longer <= OBJECT_SIZES[1] + 0.3, o
            if o.kind == "sign":
                assert GLYPH_HEIGHTS[0] - 0.1 <= o.glyph_height * scale <= GLYPH_HEIGHTS[1] + 0.1
                assert o.glyph_height * shrunk <= 6


def test_what_stands_together_lies_in_one_tile(scenes: list[Scene]) -> None:
    """Pairs, and the pictures that are counted; nothing else is as near to either."""
    pairs = counted = 0
    for scene in scenes:
        names = Counter(o.name for o in scene.objects if o.kind == "picture")
        rows = [[scene.objects[i] for i in (pair.first, pair.second)] for pair in scene.pairs]
        alike = [o for o in scene.objects if names[o.name] > 1]
        pairs, counted = pairs + len(rows), counted + bool(alike)
        size, grid = image_size(scene), scene.grid
        scale = crop_scale(size, grid, TILE)
        for row in filter(None, [*rows, alike]):
            boxes = np.array([[o.box.left, o.box.top, o.box.right, o.box.bottom] for o in row])
            left, top, right, bottom = (boxes * scale + crop_shift(size, grid, TILE)).T
            # up to a pixel: an image of whole pixels is stretched by slightly different factors
            assert (left.min() + 1) // TILE == (right.max() - 1) // TILE
            assert (top.min() + 1) // TILE == (bottom.max() - 1) // TILE
            for one in row:
                near = min(gap(one.box, o.box) for o in row if o is not one) * scale[0]
                far = min(gap(one.box, o.box) for o in scene.objects if o not in row) * scale[0]
                assert near < 5 < 15 < far
    assert pairs > 50
    assert counted > 50


def test_a_glyph_lies_in_one_token(scenes: list[Scene]) -> None:
    """The tokens of the crop grid are 14 pixels wide: a glyph is about in the middle of one."""
    for index in range(12):
        layout = draw_layout(RandomState(index))
        size, grid = (layout.height, layout.width), layout.grid
        scale, shift = crop_scale(size, grid, TILE)[:2], crop_shift(size, grid, TILE)[:2]
        stamps = layout.stamps[-len(layout.objects) :]
        for sign, stamp in [(o, s) for o, s in zip(layout.objects, stamps, strict=True) if o.kind == "sign"]:
            drop = SHAPES[sign.shape].drop * stamp.half
            centre = np.array([stamp.x - math.sin(stamp.angle) * drop, stamp.y + math.cos(stamp.angle) * drop])
            off = (centre * scale + shift) % 14 - 7
            # whole pixels stretch one side by a slightly other factor than the other, which adds up to its far end
            stretch = abs(1 - scale[1] / scale[0]) * np.array([layout.width, layout.height]) * scale
            assert (np.abs(off) <= 1.01 + stretch).all(), (index, sign)


def test_guessing_does_not_help(scenes: list[Scene]) -> None:
    questions = [question for scene in scenes for question in scene.questions]
    guess = blind_guess(questions)
    assert guess["all"][2] <= 0.4
    assert guess["presence"][2] == 0.5
    assert guess["count"][2] <= 0.45  # one, two or three
    for kind in ("digit", "letter", "left", "next"):
        assert guess[kind][2] <= 0.2, kind
    glyphs = guess["digit"][0] + guess["letter"][0]
    assert 0.4 <= glyphs / len(questions) <= 0.6
    assert set(guess) == {"all", "count", "digit", "left", "letter", "next", "presence"}


def test_blind_guess() -> None:
    scene = make_scene("test", 0)
    yes = [q for q in scene.questions if q.answer == "yes"]
    no = [q for q in scene.questions if q.answer == "no"]
    assert blind_guess(yes * 3 + no) == {"presence": (4, "yes", 0.75), "all": (4, "-", 0.75)}


def test_tokens_of_an_object_cover_its_centre(scenes: list[Scene]) -> None:
    thumbnail_hits = total = 0
    for scene in scenes:
        size = image_size(scene)
        labels = token_labels([o.box for o in scene.objects], size, scene.grid)
        assert labels.shape == (1 + scene.grid[0] * scene.grid[1], 8, 8)
        rows, columns = scene.grid
        canvas = labels[1:].reshape(rows, columns, 8, 8).swapaxes(1, 2).reshape(rows * 8, columns * 8)
        new_height, new_width = resized_inside(*size, rows * TILE, columns * TILE)
        for number, o in enumerate(scene.objects, start=1):
            x, y = o.box.centre
            column = (x * new_width / size[1] + (columns * TILE - new_width) // 2) / 14
            row = (y * new_height / size[0] + (rows * TILE - new_height) // 2) / 14
            assert canvas[int(row), int(column)] == number
            assert 2 <= (canvas == number).sum() <= 16
            thumbnail_hits += labels[0, int(y * 8 / size[0]), int(x * 8 / size[1])] == number
            total += 1
    assert thumbnail_hits > 0.9 * total


def test_token_labels_by_hand() -> None:
    """An image of 200 × 100 on the grid (2, 2): 224 × 112 of it, 56 rows of padding above and below."""
    box = Box(left=0, top=0, right=25, bottom=25)  # 28 × 28 pixels of the crops: two by two tokens
    labels = token_labels([box], (100, 200), (2, 2))
    expected = np.zeros((5, 8, 8), int)
    expected[1, 4:6, 0:2] = 1  # the upper left crop, below the padding
    expected[0, 0:2, 0] = 1  # 14 × 28 pixels of the thumbnail
    assert (labels == expected).all()
    assert not token_labels([], (100, 200), (2, 2)).any()
    with pytest.raises(ConfigError, match="positive sizes"):
        token_labels([box], (0, 200), (2, 2))


def test_model_view_is_what_the_runtime_cuts() -> None:
    from ptp.bundle.manifest import Tiling
    from ptp.runtime.preprocess.tiles import make_tiles

    scene = make_scene("test", 1)
    tiling = Tiling(
        tile_size=TILE,
        tokens_per_side=8,
        grids=GRIDS,
        max_tiles=5,
        resample="bicubic",
        rescale_factor=1 / 255,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    tiles = make_tiles(scene.image, tiling)
    thumbnail, crops = model_view(scene.image, scene.grid)
    rows, columns = tiles.grid
    assert tiles.grid == scene.grid
    seen = np.rint(tiles.pixel_values * 255).astype(np.uint8)
    assert (seen[0] == np.asarray(thumbnail).transpose(2, 0, 1)).all()
    cut = np.asarray(crops).reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, TILE, TILE)
    assert (seen[1 : tiles.count] == cut).all()


def test_materials() -> None:
    for name in PICTURES:
        assert np.abs(load_picture(name).outline).max() <= 1
    assert len(PICTURES) >= 32
    assert 12 <= sum(load_picture(name).vivid for name in PICTURES) <= 20
    assert all(load_background(name).mode in ("L", "RGB") for name in BACKGROUNDS)
    assert set(SHAPES) >= {"circle", "square", "triangle", "star"}
    sizes = {path: path.stat().st_size for path in MATERIALS.rglob("*") if path.is_file()}
    assert {path.stem for path in sizes if path.suffix == ".webp"} == set(PICTURES)
    assert {path.stem for path in sizes if path.suffix == ".jpg"} == set(BACKGROUNDS)
    assert sum(sizes.values()) < 400_000


def test_the_command_line(tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sheet.png"
    monkeypatch.setattr("sys.argv", ["task", "--count", "2", "--stats", "--out", str(out)])
    main()
    assert "best guess" in capsys.readouterr().out
    assert out.stat().st_size > 10_000
    monkeypatch.delenv(HELDOUT_SEED, raising=False)
    monkeypatch.setattr("sys.argv", ["task", "--split", "heldout", "--stats"])
    with pytest.raises(SystemExit, match="error: the split heldout needs"):
        main()


def test_the_test_split_does_not_drift() -> None:
    """Pixels may differ between versions of Pillow; what is where, and what is asked, may not."""
    layout = []
    for index in range(3):
        scene = make_scene("test", index)
        things = [
            [o.kind, o.name, o.colour, o.shape, o.glyph, *(round(side) for side in (o.box.left, o.box.top))]
            for o in scene.objects
        ]
        layout.append([scene.image.size, scene.grid, things, [(q.text, q.answer) for q in scene.questions]])
    assert hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:16] == "37c176185b81298f"
