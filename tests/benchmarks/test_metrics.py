"""Grades against values worked out by hand and against a direct count."""

import random

import pytest

from ptp.benchmarks.evaluation.metrics import METRICS, exact, normalise, says_yes, vqa, yes_no, yes_no_summary


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Cat", ["cat"], 1),
        (" cat. ", ["Cat"], 1),
        ("cat", ["cat."], 1),
        ("cat..", ["cat"], 0),
        ("cats", ["cat"], 0),
        ("a cat", ["cat"], 0),
        ("7", ["seven", "7"], 1),
        ("", ["cat"], 0),
    ],
)
def test_exact_match(answer, references, score):
    assert exact(answer, references) == score


@pytest.mark.parametrize(
    ("said_by", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)  # three of ten: (3 · 2/3 + 7 · 1) / 10
def test_vqa_accuracy_of_an_answer_that_some_of_ten_people_gave(said_by, score):
    people = ["yes"] * said_by + ["other"] * (10 - said_by)
    assert vqa("yes", people) == pytest.approx(score)


def test_vqa_accuracy_is_the_mean_over_leaving_each_person_out():
    rng = random.Random(0)
    for _ in range(200):
        people = [rng.choice("abcd") + "x" for _ in range(rng.randint(4, 12))]
        expected = 0.0
        for i in range(len(people)):
            others = people[:i] + people[i + 1 :]
            expected += min(1, len([person for person in others if person == "ax"]) / 3) / len(people)
        assert vqa("ax", people) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat.", "cat"),
        ("an apple, a pear", "apple pear"),
        ("two", "2"),
        ("None", "0"),
        ("twenty", "twenty"),
        ("100,978", "100978"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"),
        ("dont", "don't"),
        ("Cant", "can't"),
        ("youre", "you're"),
        ("Whats", "what's"),
        ("Im", "i'm"),
        ("oclock", "o'clock"),
        ("it is ill", "it is ill"),
        ("well", "well"),
        ("were", "were"),
        ("black-and-white", "black and white"),
        ('"stop" (sign)!', "stop sign"),
        ("$5", "$5"),
        ("  two\n\tdogs ", "2 dogs"),
    ],
)
def test_normalisation_of_the_published_rules(text, normal):
    assert normalise(text) == normal


def test_both_sides_are_normalised():
    assert vqa("The two dogs.", ["2 dogs"] * 10) == vqa("2 dogs", ["two Dogs!"] * 10) == 1


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No, there is none.", False),
        ("There is not one", False),
        ("Yes. There is no other.", True),
        ("Nothing of the kind", True),
        ("yes,no", False),
        ("a dog", True),
        ("", True),
    ],
)
def test_yes_or_no(answer, yes):
    assert says_yes(answer) is yes
    assert yes_no(answer, ["yes"]) == yes
    assert yes_no(answer, ["no"]) == (not yes)


def test_summary_of_yes_or_no():
    # three right yes, one wrong yes, two missed, four right no
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 4
    precision, recall = 3 / 4, 3 / 5
    expected = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": 0.4,
    }
    assert yes_no_summary(pairs) == pytest.approx(expected)
    assert set(yes_no_summary([("no", "no")]).values()) == {0.0}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("exact", ["a"], []),
        ("vqa", ["a"] * 4, ["a"] * 3),
        ("yes-no", ["Yes"], ["maybe"]),
        ("yes-no", ["no"], ["no", "no"]),
    ],
)
def test_what_a_metric_can_grade(name, good, bad):
    assert METRICS[name].accepts(good)
    assert not METRICS[name].accepts(bad)
    assert METRICS[name].score(good[0], good) == 1
