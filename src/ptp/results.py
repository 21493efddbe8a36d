"""The result of an evaluation, as it is written to `results.json` and read by tables, plots and reports."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ptp.bundle.manifest import Line

Family = Literal["unpruned", "ptp", "blind", "question"]
"""The whole image, PTP in any form, a method that does not see the question, a method that does."""

Name = Annotated[Line, Field(min_length=1, max_length=40)]
Keep = Annotated[float, Field(ge=1e-6, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Row(_Frozen):
    """Accuracy of one method at one budget.

    Attributes:
        method: its name in tables: `ptp`, `ptp-none`, `fastervlm`, …
        family: what it may look at.
        keep: fraction of visual tokens kept; 1 for the whole image.
        num_kept: K of the bundle's graph, or the method's budget with newline tokens.
        accuracy: mean score, 0 to 1.
        low: lower end of its 95 % interval.
        high: upper end.
        cases: how many questions.
        images: about how many images.
        kinds: accuracy by kind of question.
        summary: further figures of the metric: precision, recall, f1 and yes_ratio of yes-no.
    """

    method: Name
    family: Family
    keep: Keep
    num_kept: Count
    accuracy: Share
    low: Share
    high: Share
    cases: Count
    images: Count
    kinds: dict[Line, Share] = {}
    summary: dict[Line, Share] = {}


class Difference(_Frozen):
    """How much better one method is than another on the same questions.

    Attributes:
        method: one method.
        against: the other.
        keep: the budget of both; of the one, where the other is the whole image.
        mean: accuracy of the one minus accuracy of the other.
        low: lower end of the 95 % interval of the difference, images resampled.
        high: upper end.
    """

    method: Name
    against: Name
    keep: Keep
    mean: Change
    low: Change
    high: Change


class Results(_Frozen):
    """All rows of an evaluation.

    Attributes:
        schema_version: of this file.
        task: name of the task, with its split, and how answers are graded.
        model: name or folder of the model.
        weights: SHA-256 of the checkpoint's weights (`weights_sha256`), so that a report shows no other model's curve.
        tools: versions of what ran.
        rows: accuracy, by method and keep.
        differences: `ptp` against each other method at each keep.
    """

    schema_version: Literal[1] = 1
    task: Line
    model: Line
    weights: str = Field(pattern=r"^[0-9a-f]{64}$")
    tools: dict[Line, Line]
    rows: tuple[Row, ...] = Field(min_length=1, max_length=1000)
    differences: tuple[Difference, ...] = Field(default=(), max_length=1000)


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights: of its `*.safetensors` files, one after the other by name."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob("*.safetensors") if path.is_file()):  # no pipe or device
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
