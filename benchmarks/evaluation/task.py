"""What an evaluation asks, and what answers it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question about one image.

    Attributes:
        id: unique in its task.
        image: names the image, for `Task.load_image`; the cases of an image follow each other.
        question: what is asked.
        answers: the references: one word for word answer, or several people's.
        kind: what it asks for, for a table by kind; empty if nobody said.
    """

    id: str
    image: str
    question: str
    answers: tuple[str, ...]
    kind: str = ""


class Task(Protocol):
    """Questions with a way to grade answers.

    Attributes:
        name: for tables, for instance `demo/test`.
        metric: how answers are graded, for tables.
        cases: the questions.
        prompt_suffix: what is added to each question, for instance a line that asks for one word; may be empty.
        fingerprint: SHA-256 of what is asked, so that answers to other questions are never taken for answers to these;
            the same however many of the cases are asked.
    """

    name: str
    metric: str
    cases: Sequence[Case]
    prompt_suffix: str
    fingerprint: str

    def load_image(self, name: str) -> Image.Image:
        """Return the image of a case, RGB."""

    def score(self, case: Case, answer: str) -> float:
        """Return how right an answer is, 0 to 1."""

    def summary(self, answers: Sequence[tuple[Case, str]]) -> dict[str, float]:
        """Return what else there is to say about all answers, for instance their precision; often nothing."""


class Answerer(Protocol):
    """A model under one pruning method and one budget."""

    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Return the greedy answers to several questions about one image, in their order.

        Args:
            image: RGB.
            questions: the questions, each asked on its own.
        """
