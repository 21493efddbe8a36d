"""The demo's own task: scenes of many small objects, made as they are needed."""

import hashlib
from collections.abc import Sequence

from PIL import Image

from ptp.benchmarks.evaluation.metrics import exact
from ptp.benchmarks.evaluation.task import Case
from ptp.demo.task import Scene, make_scene


class DemoTask:
    """Questions about the first scenes of a split, graded by exact match.

    Args:
        split: `validation`, `test`, or `heldout`, which needs PTP_EVAL_SEED.
        images: how many scenes.
        questions: most questions about one scene; None for all there are.

    Raises:
        ConfigError: there is no such split, or its seed is missing.
    """

    metric = "exact"
    prompt_suffix = ""  # the demo model was trained to answer in one word

    def __init__(self, split: str, images: int, questions: int | None = None) -> None:
        self.name = f"demo/{split}"
        self._split = split
        first = make_scene(split, 0)
        self._last = (0, first)
        # another version of the demo, or another seed, draws another first scene
        digest = hashlib.sha256(first.image.tobytes())
        digest.update(repr([(question.text, question.answer) for question in first.questions]).encode())
        self.fingerprint = digest.hexdigest()
        self.cases: Sequence[Case] = tuple(
            Case(
                id=f"{split}/{index}/{number}",
                image=str(index),
                question=question.text,
                answers=(question.answer,),
                kind=question.kind,
            )
            for index in range(images)
            for number, question in enumerate(self._scene(index).questions[:questions])
        )

    def _scene(self, index: int) -> Scene:
        if self._last[0] != index:
            self._last = (index, make_scene(self._split, index))
        return self._last[1]

    def load_image(self, name: str) -> Image.Image:
        """See `Task.load_image`."""
        return self._scene(int(name)).image

    def score(self, case: Case, answer: str) -> float:
        """See `Task.score`."""
        return exact(answer, case.answers)

    def summary(self, answers: Sequence[tuple[Case, str]]) -> dict[str, float]:
        """See `Task.summary`: nothing."""
        return {}
