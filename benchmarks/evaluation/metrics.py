"""How right an answer is: exact match, VQA accuracy, and the yes or no of POPE.

VQA accuracy follows the rules published with the benchmark (Antol et al. 2015 and Goyal et al. 2017,
visualqa.org/evaluation.html); yes or no follows Li et al. 2023 (arXiv 2305.10355).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

MetricName = Literal["exact", "vqa", "yes-no"]

ENOUGH_PEOPLE = 3
"""How many people's answer makes it fully right, in VQA accuracy."""

NUMBER_WORDS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}

ARTICLES = {"a", "an", "the"}

MARKS = re.compile(r"""[;/\[\]"{}()=+\\_\-<>@`,?!]""")
"""Punctuation that VQA accuracy turns into spaces: not the apostrophe, the colon, or signs such as $ and %."""


def _contractions() -> dict[str, str]:
    # each contraction by its spelling without the apostrophe; where that is a word of its own (ill, well, were), none
    stems = {
        "n't": "ai are ca could did do does had has have is might must need ought sha should was were wo would",
        "'ve": "could i might must should they we what where who would you",
        "'s": "he how she somebody someone something that there what when where who why",
        "'re": "there they what why you",
        "'ll": "how it somebody someone something that they what who why you",
        "'d": "how it somebody someone something that there they where who why you",
    }
    spelled = [stem + ending for ending, row in stems.items() for stem in row.split()]
    return {word.replace("'", ""): word for word in [*spelled, "i'm", "ma'am", "o'clock", "y'all", "'twas"]}


CONTRACTIONS = _contractions()


def exact(answer: str, references: Sequence[str]) -> float:
    """Return 1 if an answer is one of the references, else 0; case, outer space and one final period do not count."""
    return float(_plain(answer) in map(_plain, references))


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def vqa(answer: str, references: Sequence[str]) -> float:
    """Return the VQA accuracy of an answer: min(people who said so / 3, 1), averaged over leaving out each person.

    Args:
        answer: what is graded.
        references: one answer of each person; ten in the published benchmarks.
    """
    said, people = normalise(answer), [normalise(reference) for reference in references]
    agree = people.count(said)
    return sum(min((agree - (person == said)) / ENOUGH_PEOPLE, 1.0) for person in people) / len(people)


def normalise(text: str) -> str:
    """Return an answer as VQA accuracy compares it.

    Lower case; no comma inside a number and no period that is not a decimal point; other punctuation is a space; number
    words up to ten are digits; articles are dropped; an apostrophe that a contraction lacks is put back.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    text = MARKS.sub(" ", text)
    text = re.sub(r"\.(?!\d)", "", text)
    words = (NUMBER_WORDS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def yes_no(answer: str, references: Sequence[str]) -> float:
    """Return 1 if an answer means the same as the reference, yes or no, else 0."""
    return float(says_yes(answer) == says_yes(references[0]))


def says_yes(answer: str) -> bool:
    """Return what an answer means, as POPE reads it: `no` or `not` in its first sentence is no, all else is yes."""
    sentence = answer.strip().split(".")[0].replace(",", " ")
    return not {"no", "not"} & set(sentence.lower().split())


def yes_no_summary(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Return precision, recall and F1 of `yes`, and how often it was the answer; what has no value is 0.

    Args:
        pairs: answers, each with its reference.
    """
    said = [(says_yes(answer), says_yes(reference)) for answer, reference in pairs]
    right = sum(answer and reference for answer, reference in said)
    answered, true = sum(answer for answer, _ in said), sum(reference for _, reference in said)
    return {
        "precision": right / answered if answered else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (answered + true) if right else 0.0,
        "yes_ratio": answered / len(said) if said else 0.0,
    }


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A way to grade answers.

    Attributes:
        score: grades an answer by its references, 0 to 1.
        accepts: whether references can be used.
        expected: which can, in words.
    """

    score: Callable[[str, Sequence[str]], float]
    accepts: Callable[[Sequence[str]], bool]
    expected: str


METRICS: dict[MetricName, Metric] = {
    "exact": Metric(score=exact, accepts=lambda answers: len(answers) > 0, expected="one answer or more"),
    # one is left out, and three of the rest have to agree
    "vqa": Metric(
        score=vqa,
        accepts=lambda answers: len(answers) > ENOUGH_PEOPLE,
        expected="the answers of four people or more (ten in VQA and TextVQA)",
    ),
    "yes-no": Metric(
        score=yes_no,
        accepts=lambda answers: len(answers) == 1 and _plain(answers[0]) in ("yes", "no"),
        expected="one answer, yes or no",
    ),
}
