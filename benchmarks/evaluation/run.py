"""Ask every method at every budget every question, and sum up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Protocol

import numpy as np

from ptp.benchmarks.evaluation.records import Record, Records
from ptp.benchmarks.evaluation.statistics import Resampler, Scores
from ptp.benchmarks.evaluation.task import Answerer, Case, Task
from ptp.benchmarks.evaluation.variants import Variant
from ptp.errors import ConfigError
from ptp.results import Difference, Results, Row

Progress = Callable[[str, int, int], None]
"""Called with what is being asked, how many questions have been answered, and of how many."""

OURS = "ptp"
"""The method whose lead over each other one is computed."""


class AnswererSource(Protocol):
    """A model that can be opened under each method and budget."""

    def open(self, variant: Variant, keep: Fraction) -> Answerer:
        """Return what answers with a method at a budget."""

    def num_kept(self, variant: Variant, keep: Fraction) -> int:
        """Return how many visual tokens it sees, newline tokens included."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method at one budget; the whole image has keep 1."""

    variant: Variant
    keep: Fraction

    @property
    def name(self) -> str:
        """For progress."""
        return self.variant.name if self.keep == 1 else f"{self.variant.name} at {float(self.keep):g}"


def plan(variants: Mapping[str, Variant], methods: Sequence[str], keeps: Sequence[Fraction]) -> tuple[Run, ...]:
    """Return what is to be run: the whole image once, and each method at each budget below 1.

    Keep 1 is the whole image whatever the method, so that it asks for `unpruned`, named or not.

    Args:
        variants: all there are, by name.
        methods: names.
        keeps: fractions of visual tokens kept.

    Raises:
        ConfigError: a method or a fraction is none.
    """
    unknown = [name for name in methods if name not in variants]
    if unknown:
        raise ConfigError("there is no such method", got=", ".join(unknown), expected=", ".join(variants))
    wrong = [str(float(keep)) for keep in keeps if not 0 < keep <= 1]
    if wrong:
        raise ConfigError("--keep is the fraction of tokens kept", got=", ".join(wrong), expected="0 < keep ≤ 1")
    whole = next(variant for variant in variants.values() if variant.family == "unpruned")
    below = sorted({keep for keep in keeps if keep < 1}, reverse=True)
    runs = [
        Run(variant=variants[name], keep=keep)
        for name in dict.fromkeys(methods)
        if name != whole.name
        for keep in below
    ]
    if whole.name in methods or 1 in keeps:
        runs.insert(0, Run(variant=whole, keep=Fraction(1)))
    if not runs:
        raise ConfigError("nothing to evaluate", do="name a method with --methods or keep 1 with --keep")
    return tuple(runs)


def evaluate(
    task: Task, runs: Sequence[Run], answerers: AnswererSource, records: Records, progress: Progress = lambda *_: None
) -> None:
    """Ask what has not been answered yet.

    Args:
        task: the questions.
        runs: methods and budgets.
        answerers: what answers.
        records: where the answers are, and go: those about one image at a time.
        progress: told how far it is.

    Raises:
        PtpError: a method cannot have a budget (before anything is asked), or a model or an image cannot be used.
    """
    for run in runs:
        answerers.num_kept(run.variant, run.keep)
    done, total = 0, len(runs) * len(task.cases)
    for run in runs:
        name, keep = run.variant.name, float(run.keep)
        missing = [case for case in task.cases if records.get(name, keep, case.id) is None]
        done += len(task.cases) - len(missing)
        progress(run.name, done, total)
        if missing:
            for count in _ask(task, run, missing, answerers, records):
                done += count
                progress(run.name, done, total)


def _ask(task: Task, run: Run, cases: Sequence[Case], answerers: AnswererSource, records: Records) -> Iterator[int]:
    """Yield how many questions were answered, an image at a time; the answerer, a whole model, is gone at the end."""
    answerer = answerers.open(run.variant, run.keep)
    for image, group in groupby(cases, key=lambda case: case.image):
        asked = list(group)
        answers = answerer.answer(task.load_image(image), [case.question + task.prompt_suffix for case in asked])
        records.add(
            [
                Record(
                    method=run.variant.name,
                    keep=float(run.keep),
                    case=case.id,
                    answer=answer,
                    score=task.score(case, answer),
                )
                for case, answer in zip(asked, answers, strict=True)
            ]
        )
        yield len(asked)


def sum_up(
    task: Task,
    runs: Sequence[Run],
    answerers: AnswererSource,
    records: Records,
    *,
    model: str,
    weights: str,
    tools: Mapping[str, str],
) -> Results:
    """Return accuracies and differences of runs that are complete.

    Args:
        task: the questions.
        runs: methods and budgets.
        answerers: what answered.
        records: the answers.
        model: name or folder of the model.
        weights: SHA-256 of its weights.
        tools: versions of what ran.
    """
    resampler = Resampler([case.image for case in task.cases])
    scores = dict[Run, Scores]()
    rows = []
    for run in runs:
        given = list(_given(task, run, records))
        scores[run] = np.array([record.score for _, record in given])
        interval = resampler.accuracy(scores[run])
        rows.append(
            Row(
                method=run.variant.name,
                family=run.variant.family,
                keep=float(run.keep),
                num_kept=answerers.num_kept(run.variant, run.keep),
                accuracy=interval.mean,
                low=interval.low,
                high=interval.high,
                cases=len(task.cases),
                images=len({case.image for case in task.cases}),
                kinds=_by_kind(task.cases, scores[run]),
                summary=task.summary([(case, record.answer) for case, record in given]),
            )
        )
    return Results(
        task=f"{task.name} ({task.metric})",
        model=model,
        weights=weights,
        tools=dict(tools),
        rows=tuple(rows),
        differences=tuple(_differences(scores, resampler)),
    )


def _given(task: Task, run: Run, records: Records) -> Iterator[tuple[Case, Record]]:
    for case in task.cases:
        record = records.get(run.variant.name, float(run.keep), case.id)
        assert record is not None, f"{run.name} was not asked {case.id}"
        yield case, record


def _by_kind(cases: Sequence[Case], scores: Scores) -> dict[str, float]:
    kinds = np.array([case.kind for case in cases])
    return {str(kind): float(scores[kinds == kind].mean()) for kind in np.unique(kinds) if kind}


def _differences(scores: Mapping[Run, Scores], resampler: Resampler) -> Iterator[Difference]:
    for ours in scores:
        if ours.variant.name != OURS:
            continue
        for other in scores:
            # the whole image has no budget: each of ours is measured by it
            if other != ours and (other.keep == ours.keep or other.variant.family == "unpruned"):
                interval = resampler.difference(scores[ours], scores[other])
                yield Difference(
                    method=OURS,
                    against=other.variant.name,
                    keep=float(ours.keep),
                    mean=interval.mean,
                    low=interval.low,
                    high=interval.high,
                )
