"""Ask a bundle the questions of an evaluation, and draw which tokens it kept for each."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ptp.bundle import Bundle, Manifest
from ptp.errors import PromptError
from ptp.report.evaluation import Example
from ptp.runtime.backends.registry import graph_loader
from ptp.runtime.picture import draw_levels
from ptp.runtime.pipeline import Pipeline
from ptp.runtime.preprocess.images import load_image
from ptp.runtime.vision import VisualTokens

LONGEST_SIDE = 640
QUALITY = 82
MAX_NEW_TOKENS = 64

Progress = Callable[[int, int], None]
"""Called with questions asked and questions in all."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, the answer, and the tokens that the answer was given by.

    Attributes:
        question: the question.
        answer: what the model said; None if it could not be asked.
        refusal: why it could not be asked.
        thumbnail: data URI of the thumbnail with the dropped tokens dimmed.
        crops: data URI of the crops.
        kept: kept tokens of the thumbnail and of the crops.
        tokens: all tokens of the thumbnail and of the crops.
        positions: positions of the kept tokens, newline tokens left out.
    """

    question: str
    answer: str | None = None
    refusal: str = ""
    thumbnail: str = ""
    crops: str = ""
    kept: tuple[int, int] = (0, 0)
    tokens: tuple[int, int] = (0, 0)
    positions: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image and what was asked about it."""

    name: str
    asked: tuple[Asked, ...]

    @property
    def answered(self) -> tuple[Asked, ...]:
        """The questions that were asked."""
        return tuple(asked for asked in self.asked if asked.answer is not None)

    @property
    def in_common(self) -> int:
        """Tokens that were kept for every question."""
        return len(frozenset.intersection(*(asked.positions for asked in self.answered)))


def show_examples(bundle: Bundle, examples: tuple[Example, ...], progress: Progress) -> tuple[Shown, ...]:
    """Return the answers and the pictures, the questions about one image together.

    Args:
        bundle: what to ask.
        examples: images with questions.
        progress: called before each question.

    Raises:
        PtpError: a graph failed. A question that is too long for the bundle is no error but said in its place.
    """
    if not examples:
        return ()
    pipeline = Pipeline(bundle, graph_loader("onnxruntime", provider="cpu", threads=None))
    by_image: dict[Path, list[Asked]] = {}
    for done, example in enumerate(examples):
        progress(done, len(examples))
        by_image.setdefault(example.image, []).append(_ask(pipeline, example))
    return tuple(Shown(name=path.name, asked=tuple(asked)) for path, asked in by_image.items())


def _ask(pipeline: Pipeline, example: Example) -> Asked:
    image = load_image(example.image)
    try:
        generation = pipeline.stream(image, example.question, max_new_tokens=MAX_NEW_TOKENS)
    except PromptError as error:  # `--max-prompt` may be less than the checkpoint's questions need
        return Asked(question=example.question, refusal=str(error))
    return _draw(image, generation.visual, pipeline.manifest, example.question, generation.answer().text)


def _draw(image: Image.Image, visual: VisualTokens, manifest: Manifest, question: str, answer: str) -> Asked:
    layout = visual.layout(manifest.tiling)
    thumbnail, crops = draw_levels(image, visual, manifest, longest=LONGEST_SIDE)
    positions = frozenset(p for p in visual.positions.tolist() if not layout.cell(p).is_newline)
    first = layout.side**2  # tokens of the thumbnail, which comes first
    in_thumbnail = sum(position < first for position in positions)
    rows, columns = layout.kept_size
    return Asked(
        question=question,
        answer=answer.strip(),
        thumbnail=_data_uri(thumbnail),
        crops=_data_uri(crops),
        kept=(in_thumbnail, len(positions) - in_thumbnail),
        tokens=(first, rows * columns),
        positions=positions,
    )


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
