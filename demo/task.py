"""The demo's task: unlimited scenes of many small objects, with questions that need their details.

    python -m ptp.demo.task --split test --index 0 --count 12 --out sheet.png
    python -m ptp.demo.task --split test --count 500 --stats

A scene depends on its split and its index only; `heldout` also on the environment variable PTP_EVAL_SEED, so that
whoever measures can draw scenes that nobody has trained on or tuned for. Needs numpy and Pillow only.
"""

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import MT19937, RandomState, SeedSequence
from PIL import Image

from ptp.anyres import Grid
from ptp.demo.layout import draw_layout
from ptp.demo.questions import Question, ask
from ptp.demo.scenes import Clutter, Layout, Object, Pair, paint
from ptp.errors import ConfigError, PtpError

SPLITS = {"train": 1, "validation": 2, "test": 3, "heldout": 4}
"""Splits, and the number by which each draws its seeds."""

HELDOUT_SEED = "PTP_EVAL_SEED"
"""Environment variable that seeds the split `heldout`."""

_TASK = 20_260  # sets these seeds apart from others that are drawn from small integers


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image with what is on it.

    Attributes:
        image: RGB.
        objects: signs and pictures, with their boxes in pixels of the image.
        questions: questions with their answers.
        clutter: what lies around besides.
        pairs: pictures that stand together; at most one pair where questions are asked.
        grid: rows and columns of tiles that the demo model cuts the image into.
    """

    image: Image.Image
    objects: tuple[Object, ...]
    questions: tuple[Question, ...]
    clutter: tuple[Clutter, ...]
    pairs: tuple[Pair, ...]
    grid: Grid


def make_scene(split: str, index: int) -> Scene:
    """Return a scene; the same one for the same arguments.

    Args:
        split: one of `SPLITS`.
        index: number of the scene, 0 to 2³² − 1.

    Raises:
        ConfigError: there is no such split or index, or PTP_EVAL_SEED is needed and is missing or no integer.
    """
    rng, layout, questions = _ask(split, index)
    return Scene(
        image=paint(layout, rng),
        objects=layout.objects,
        questions=questions,
        clutter=layout.clutter,
        pairs=layout.pairs,
        grid=layout.grid,
    )


def make_questions(split: str, index: int) -> tuple[Question, ...]:
    """Return the questions of a scene without drawing it; arguments and errors are those of `make_scene`."""
    return _ask(split, index)[2]


def _ask(split: str, index: int) -> tuple[RandomState, Layout, tuple[Question, ...]]:
    """Return what is in a scene and what is asked about it, and chance as the background finds it."""
    rng = RandomState(MT19937(_seed(split, index)))
    layout = draw_layout(rng)
    return rng, layout, ask(layout.objects, layout.pairs, layout.counted, rng)


def _seed(split: str, index: int) -> SeedSequence:
    if split not in SPLITS:
        raise ConfigError("there is no such split", got=split, expected=", ".join(SPLITS))
    if not 0 <= index < 1 << 32:
        raise ConfigError("there is no such scene", got=index, expected="an index from 0 to 2^32 − 1")
    # the split's number has a place of its own, so that no seed of one split is a seed of another
    return SeedSequence([_TASK, SPLITS[split], index, heldout_seed() if split == "heldout" else 0])


def heldout_seed() -> int:
    """Return the seed of the split `heldout`.

    Raises:
        ConfigError: PTP_EVAL_SEED is missing or no integer, 0 or more.
    """
    value = os.environ.get(HELDOUT_SEED)
    # isdecimal also knows other scripts' digits; int() takes signs, spaces and underscores
    if value is None or not (value.isascii() and value.isdecimal() and len(value) <= 100):
        raise ConfigError(
            f"the split heldout needs the environment variable {HELDOUT_SEED}",
            got="none" if value is None else repr(value[:40]),
            expected="an integer, 0 or more",
        )
    return int(value)


def blind_guess(questions: Iterable[Question]) -> dict[str, tuple[int, str, float]]:
    """Return, for each kind of question, how many there are, the commonest answer, and its share.

    The entry `all` has the share of right answers if each kind is always given its own commonest answer.

    Args:
        questions: the questions, of many scenes.
    """
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        answers[question.kind][question.answer] += 1
    result, right = {}, 0
    for kind, counts in sorted(answers.items()):
        best, times = max(counts.items(), key=lambda item: (item[1], item[0]))
        result[kind] = (counts.total(), best, times / counts.total())
        right += times
    total = sum(counts.total() for counts in answers.values())
    return result | {"all": (total, "-", right / total)}


def main() -> None:
    """Draw a contact sheet of scenes, or print how far guessing gets."""
    parser = argparse.ArgumentParser(prog="python -m ptp.demo.task", description="Look at the demo's task.")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--index", type=int, default=0, help="number of the first scene")
    parser.add_argument("--count", type=int, default=12, help="number of scenes")
    parser.add_argument("--out", type=Path, help="PNG file for the contact sheet")
    parser.add_argument("--stats", action="store_true", help="print the best blind guess of each kind of question")
    options = parser.parse_args()
    if options.count < 1 or (options.out is None and not options.stats):
        parser.error("nothing to do: give --out or --stats, and --count 1 or more")
    try:
        scenes = [make_scene(options.split, options.index + i) for i in range(options.count)]
    except PtpError as error:
        sys.exit(f"error: {error}")
    if options.stats:
        guesses = blind_guess(question for scene in scenes for question in scene.questions)
        for kind, (total, best, share) in guesses.items():
            print(f"{kind:9} {total:6} questions   best guess {best:12} {share:6.1%}")
        print(f"{np.mean([len(scene.objects) for scene in scenes]):.1f} objects per scene")
    if options.out is not None:
        from ptp.demo.sheet import draw_sheet

        draw_sheet(scenes).save(options.out)


if __name__ == "__main__":
    main()
