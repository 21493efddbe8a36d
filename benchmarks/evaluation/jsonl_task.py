"""Questions from a file on disk: one's own JSONL, TextVQA's JSON, or POPE's JSONL.

The form is told by the keys:

- one's own, an object a line: `image`, `question`, `answer` or `answers`; perhaps `id`, `kind`;
- POPE, an object a line: `question_id`, `image`, `text`, `label`;
- TextVQA, one object: `data`, a list of objects with `question_id`, `image_id`, `question`, `answers`.

Further keys are of no interest here and are let be.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptp.benchmarks.evaluation.metrics import METRICS, MetricName, yes_no_summary
from ptp.benchmarks.evaluation.task import Case
from ptp.bundle.manifest import Line
from ptp.errors import ConfigError
from ptp.runtime.preprocess.images import load_image

ONE_WORD = "\nAnswer the question using a single word or phrase."
"""What LLaVA's own evaluations add to each question of TextVQA and POPE (arXiv 2310.03744)."""

Text = Annotated[str, Field(min_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)  # `"answer": 3` and `"id": 7` are clear enough

    @abstractmethod
    def case(self, where: str) -> Case:
        """Return the question; `where` is its place in the file."""


class _OwnRow(_Row):
    image: Text
    question: Text
    answer: Text | None = None
    answers: Annotated[list[Text], Field(min_length=1)] | None = None
    id: Text | None = None
    kind: Line = ""

    def case(self, where: str) -> Case:
        if (self.answer is None) == (self.answers is None):
            got = "neither answer nor answers" if self.answer is None else "both answer and answers"
            raise ConfigError(f"{where} does not say what is right", got=got, expected="one of the two")
        answers = (self.answer,) if self.answer is not None else tuple(self.answers or ())
        own_id = self.id if self.id is not None else where.rpartition(":")[2]
        return Case(id=own_id, image=self.image, question=self.question, answers=answers, kind=self.kind)


class _PopeRow(_Row):
    question_id: Text
    image: Text
    text: Text
    label: Text

    def case(self, where: str) -> Case:
        return Case(id=self.question_id, image=self.image, question=self.text, answers=(self.label,))


class _TextVqaRow(_Row):
    question_id: Text
    image_id: Text
    question: Text
    answers: list[str]

    def case(self, where: str) -> Case:
        return Case(
            id=self.question_id, image=f"{self.image_id}.jpg", question=self.question, answers=tuple(self.answers)
        )


class FileTask:
    """The questions of a file.

    Args:
        path: the file.
        images: folder that the images' paths start from; the file's own by default.
        metric: how answers are graded; by default POPE's `yes-no`, TextVQA's `vqa`, and `exact` for one's own file.
        limit: ask about the first so many images only.
        prompt_suffix: what is added to each question; by default `ONE_WORD` for TextVQA and POPE, and nothing for one's
            own file.

    Raises:
        ConfigError: the file cannot be read, a line of it is not as it should be, or images are missing.
    """

    def __init__(
        self,
        path: Path,
        *,
        images: Path | None = None,
        metric: MetricName | None = None,
        limit: int | None = None,
        prompt_suffix: str | None = None,
    ) -> None:
        try:
            content = path.read_bytes()
            text = content.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read", got=error, expected="a JSON or JSONL file in UTF-8") from error
        self.fingerprint = hashlib.sha256(content).hexdigest()
        form, rows = _rows(path, text)
        own = form is _OwnRow
        metric = metric or ("exact" if own else "vqa" if form is _TextVqaRow else "yes-no")
        self.metric: str = metric
        self._grader = METRICS[metric]
        self.prompt_suffix = prompt_suffix if prompt_suffix is not None else "" if own else ONE_WORD
        self.name = "".join(filter(str.isprintable, path.stem))
        self._folder = images if images is not None else path.parent
        self.cases: Sequence[Case] = _first_images(self._read(form, rows), limit)
        if not self.cases:
            raise ConfigError(f"{path} asks nothing", expected="a question or more")
        self._require_images()

    def _read(self, form: type[_Row], rows: Iterator[tuple[str, Any]]) -> list[Case]:
        cases, seen = list[Case](), dict[str, str]()
        for where, row in rows:
            try:
                case = form.model_validate(row).case(where)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"])) or "this"
                got = None if first["type"] == "missing" else repr(first["input"])[:60]
                raise ConfigError(f"{where}: {key} cannot be used", got=got, expected=first["msg"]) from error
            if case.id in seen:
                raise ConfigError(
                    f"{where} has the id of another question", got=case.id, expected=f"not that of {seen[case.id]}"
                )
            if not self._grader.accepts(case.answers):
                raise ConfigError(
                    f"{where} cannot be graded by {self.metric}",
                    got=", ".join(map(repr, case.answers))[:60],
                    expected=self._grader.expected,
                    do="choose another --metric",
                )
            seen[case.id] = where
            cases.append(case)
        return cases

    def _require_images(self) -> None:
        names = dict.fromkeys(case.image for case in self.cases)
        missing = [name for name in names if not (self._folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"{len(missing)} of {len(names)} images are missing",
                got=f"no {self._folder / missing[0]}",
                do="say where the images are with --images",
            )

    def load_image(self, name: str) -> Image.Image:
        """See `Task.load_image`."""
        return load_image(self._folder / name)

    def score(self, case: Case, answer: str) -> float:
        """See `Task.score`."""
        return self._grader.score(answer, case.answers)

    def summary(self, answers: Sequence[tuple[Case, str]]) -> dict[str, float]:
        """See `Task.summary`: precision, recall, F1 and share of `yes` for yes-no, else nothing."""
        if self.metric != "yes-no":
            return {}
        return yes_no_summary((answer, case.answers[0]) for case, answer in answers)


def _rows(path: Path, text: str) -> tuple[type[_Row], Iterator[tuple[str, Any]]]:
    """Return the form of a file, and its rows with the place of each."""
    try:
        whole = json.loads(text)
    except ValueError:  # several lines, or no JSON at all
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        return _TextVqaRow, ((f"{path}: data[{number}]", row) for number, row in enumerate(whole["data"]))
    rows = list(_lines(path, text))
    is_pope = bool(rows) and {"text", "label"} <= rows[0][1].keys()
    return (_PopeRow if is_pope else _OwnRow), iter(rows)


def _lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number} is not JSON", got=error, expected="one object a line") from error
        if not isinstance(row, dict):
            raise ConfigError(
                f"{path}:{number} is not an object", got=line[:60], expected='{"image": …, "question": …}'
            )
        yield f"{path}:{number}", row


def _first_images(cases: Sequence[Case], limit: int | None) -> tuple[Case, ...]:
    """Return the cases of the first images, those of one image together."""
    by_image: dict[str, list[Case]] = {}
    for case in cases:
        by_image.setdefault(case.image, []).append(case)
    return tuple(case for group in list(by_image.values())[:limit] for case in group)
