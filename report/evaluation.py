"""Read a checkpoint's evaluation: what was measured on it, and images with questions that show it at work.

    evaluation/results.json     `ptp.results.Results`
    evaluation/examples.json    [{"image": "a.jpg", "question": "…"}, …], the images beside it; may be missing

A checkpoint is data from strangers: sizes are bounded, and no file may lie outside the checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ptp.bundle.manifest import Line
from ptp.errors import CheckpointError
from ptp.results import Results, weights_sha256
from ptp.runtime.preprocess.images import load_image

FOLDER = "evaluation"
MAX_RESULTS_BYTES = 1 << 20
MAX_EXAMPLES_BYTES = 1 << 16
MAX_IMAGE_BYTES = 1 << 24
MAX_EXAMPLES = 16

Content = TypeVar("Content")


class _Entry(BaseModel):
    """An entry of `examples.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Annotated[Line, Field(pattern=r"^[^/\\:.][^/\\:]*$", max_length=255)]
    question: Annotated[Line, Field(min_length=1)]


_RESULTS = TypeAdapter(Results)
_EXAMPLES = TypeAdapter(Annotated[tuple[_Entry, ...], Field(max_length=MAX_EXAMPLES)])


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image file and a question about it."""

    image: Path
    question: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a checkpoint says about itself.

    Attributes:
        results: accuracy, by method and keep.
        examples: images with questions.
        is_of_these_weights: whether the results were measured on the weights beside them.
    """

    results: Results
    examples: tuple[Example, ...]
    is_of_these_weights: bool


def read_evaluation(checkpoint: Path) -> Evaluation | None:
    """Return the evaluation in a checkpoint's folder, or None if there is none.

    Raises:
        CheckpointError: a file is missing, too large, not as its schema says, or a link out of the checkpoint.
        ImageError: an image cannot be read.
    """
    folder = checkpoint / FOLDER
    if not (folder / "results.json").exists():
        return None
    results = _read(checkpoint, "results.json", MAX_RESULTS_BYTES, _RESULTS)
    entries: tuple[_Entry, ...] = ()
    if (folder / "examples.json").exists():
        entries = _read(checkpoint, "examples.json", MAX_EXAMPLES_BYTES, _EXAMPLES)
    for name in dict.fromkeys(entry.image for entry in entries):
        load_image(_checked(checkpoint, name, MAX_IMAGE_BYTES))  # and not kept: refused now or never
    return Evaluation(
        results=results,
        examples=tuple(Example(image=folder / entry.image, question=entry.question) for entry in entries),
        is_of_these_weights=results.weights == weights_sha256(checkpoint),
    )


def _read(checkpoint: Path, name: str, limit: int, schema: TypeAdapter[Content]) -> Content:
    try:
        return schema.validate_json(_checked(checkpoint, name, limit).read_bytes())
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()[:3]
        )
        raise CheckpointError(
            f"{checkpoint / FOLDER / name} does not follow its schema",
            got=problems[:300],
            do=f"correct it or remove {FOLDER}/",
        ) from error


def _checked(checkpoint: Path, name: str, limit: int) -> Path:
    """Return the path of a file of the evaluation, which is bounded and lies in the checkpoint."""
    path = checkpoint / FOLDER / name
    if not path.is_file():
        raise CheckpointError(
            f"{path} is {'not a file' if path.exists() else 'missing'}", do=f"add it or remove {FOLDER}/"
        )
    # the hub's client links every file of a checkpoint to one folder of contents: home is where the others are
    home = (checkpoint / "config.json").resolve().parent
    if not path.resolve().is_relative_to(home):
        raise CheckpointError(f"{path} is a link out of the checkpoint", do="replace it by the file")
    if (size := path.stat().st_size) > limit:
        raise CheckpointError(f"{path} is too large", got=f"{size} bytes", expected=f"at most {limit}")
    return path
