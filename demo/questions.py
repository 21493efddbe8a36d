"""Questions about a scene: one word answers each, and what is drawn leaves no doubt about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.random import RandomState

from ptp.demo.materials import PICTURES, plural
from ptp.demo.scenes import Box, Object, Pair, pick

QuestionKind = Literal["digit", "letter", "left", "next", "count", "presence"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its answer.

    Attributes:
        text: the question.
        answer: one word: a digit, a capital letter, a picture's name, yes or no.
        kind: what it asks for.
        targets: what has to be seen to answer it; nothing if the answer is no.
    """

    text: str
    answer: str
    kind: QuestionKind
    targets: tuple[Box, ...]


def ask(objects: Sequence[Object], pairs: Sequence[Pair], counted: str, rng: RandomState) -> tuple[Question, ...]:
    """Return the questions of a scene, in random order.

    Args:
        objects: what is in the scene.
        pairs: pictures that stand together.
        counted: name of the pictures to be counted; empty for none.
        rng: where chance comes from.
    """
    questions = [ask_glyph(o) for o in objects if o.kind == "sign"]
    for pair in pairs:
        first, second = objects[pair.first], objects[pair.second]
        if pair.horizontal:
            questions += [ask_left(second, first), ask_next(first, second)]
        else:
            questions.append(ask_next(first, second) if rng.uniform() < 0.5 else ask_next(second, first))
    if counted:
        questions.append(ask_count(objects, counted))
    present = sorted({o.name for o in objects if o.kind == "picture"})
    questions.append(ask_presence(objects, pick(rng, present)))
    questions.append(ask_presence(objects, pick(rng, [name for name in PICTURES if name not in present])))
    return tuple(questions[int(i)] for i in rng.permutation(len(questions)))


def ask_glyph(sign: Object) -> Question:
    """Return the question for what is written on a sign."""
    kind: QuestionKind = "digit" if sign.glyph.isdigit() else "letter"
    text = f"Which {kind} is on the {sign.colour} {sign.shape}?"
    return Question(text=text, answer=sign.glyph, kind=kind, targets=(sign.box,))


def ask_left(picture: Object, neighbour: Object) -> Question:
    """Return the question for what stands left of a picture."""
    text = f"What is left of the {picture.name}?"
    return Question(text=text, answer=neighbour.name, kind="left", targets=(picture.box, neighbour.box))


def ask_next(picture: Object, neighbour: Object) -> Question:
    """Return the question for what stands beside, above or below a picture."""
    text = f"What is next to the {picture.name}?"
    return Question(text=text, answer=neighbour.name, kind="next", targets=(picture.box, neighbour.box))


def ask_count(objects: Sequence[Object], name: str) -> Question:
    """Return the question for how often a picture occurs."""
    targets = tuple(o.box for o in objects if o.name == name)
    text = f"How many {plural(name)} are there?"
    return Question(text=text, answer=str(len(targets)), kind="count", targets=targets)


def ask_presence(objects: Sequence[Object], name: str) -> Question:
    """Return the question for whether a picture occurs."""
    targets = tuple(o.box for o in objects if o.name == name)
    article = "an" if name[0] in "aeiou" else "a"
    text = f"Is there {article} {name}?"
    return Question(text=text, answer="yes" if targets else "no", kind="presence", targets=targets)
