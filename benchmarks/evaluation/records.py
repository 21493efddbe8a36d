"""Every answer of an evaluation, on disk as soon as it is given, so that one that was stopped goes on where it was.

`records.jsonl` is a line of settings, then a line for each answer. The last line may be torn, where the program was
killed while it wrote; it is dropped, and its question asked again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ptp.errors import ConfigError

FILE = "records.jsonl"


class Record(BaseModel):
    """An answer.

    Attributes:
        method: the variant that gave it.
        keep: fraction of visual tokens kept.
        case: id of the question.
        answer: as it was given.
        score: how right it is, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    keep: float
    case: str
    answer: str
    score: float

    @property
    def key(self) -> tuple[str, float, str]:
        """What was asked of whom."""
        return self.method, self.keep, self.case


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    settings: dict[str, str]


class Records:
    """The answers in a folder; to be used as a context manager, which closes the file.

    Args:
        folder: the evaluation's; made if it is not there.
        settings: what the answers depend on and how they are graded: task, model, …
        force: drop the answers to another evaluation's questions.

    Raises:
        ConfigError: the folder holds another evaluation, something else, or a damaged file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], *, force: bool = False) -> None:
        path = folder / FILE
        if folder.exists() and not path.is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is no evaluation", expected="a new folder", do="choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        self._answers: dict[tuple[str, float, str], Record] = {}
        content = b"" if force or not path.is_file() else path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole:
            self._read(path, whole, settings)
        self._file: IO[bytes] = path.open("r+b" if path.is_file() else "w+b")
        self._file.truncate(len(whole))
        self._file.seek(0, 2)
        if not whole:
            self._write([_Header(settings=dict(settings))])

    def _read(self, path: Path, content: bytes, settings: Mapping[str, str]) -> None:
        head, *lines = content.splitlines()
        try:
            found = _Header.model_validate_json(head).settings
            records = [Record.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise ConfigError(
                f"{path} is damaged",
                got=error.errors()[0]["msg"],
                do="choose another --out, or --force to start anew",
            ) from error
        differ = [name for name in {**settings, **found} if settings.get(name) != found.get(name)]
        if differ:
            raise ConfigError(
                f"{path} holds another evaluation",
                got=", ".join(f"{name} {_short(found.get(name))}" for name in differ),
                expected=", ".join(f"{name} {_short(settings.get(name))}" for name in differ),
                do="choose another --out, or --force to drop its answers",
            )
        self._answers = {record.key: record for record in records}

    def get(self, method: str, keep: float, case: str) -> Record | None:
        """Return the answer to a question, or None if it was not asked."""
        return self._answers.get((method, keep, case))

    def add(self, records: Sequence[Record]) -> None:
        """Write answers to disk."""
        self._write(records)
        self._answers |= {record.key: record for record in records}

    def _write(self, lines: Sequence[BaseModel]) -> None:
        self._file.write(b"".join(json.dumps(line.model_dump()).encode() + b"\n" for line in lines))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def _short(value: str | None) -> str:
    return "none" if value is None else repr(value) if len(value) <= 60 else f"{value[:12]}…"
