"""Answers of PTP as it is shipped: an exported bundle in the runtime."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from PIL import Image

import ptp.export
import ptp.ptp_graph
from ptp import Pipeline
from ptp.benchmarks.evaluation.variants import PtpOptions
from ptp.bundle import open_bundle
from ptp.bundle.hashes import sha256_of
from ptp.bundle.manifest import Alpha, PositionPolicy, Precision, WeightType
from ptp.export.checkpoint import Checkpoint
from ptp.export.config import DEFAULT_OPSET, QUANTIZED_OPSET, ExportConfig, Optimize
from ptp.export.graph_writer import Progress
from ptp.export.locate import SMALL_FILES
from ptp.export.pipeline import export, tool_versions
from ptp.ptp_graph.schedule import TOPK_LIMIT, Schedule
from ptp.results import weights_sha256
from ptp.runtime.backends.registry import graph_loader

USUAL_KEEP = Fraction(1, 4)
"""Where a bundle's preferred K lies; every answer says how much it wants kept."""


class Bundles:
    """Bundles of one checkpoint in a folder, exported when they are first asked for.

    A bundle serves every keep, every α and both position policies. Its name holds a hash of the checkpoint, the options
    and the exporter, so that nothing made of other weights or by other code is taken for it.

    Args:
        checkpoint: what is exported.
        model: the name or folder that it was opened by.
        revision: the revision that it was opened by.
        folder: where bundles stay.
        max_prompt: most text tokens of a prompt.
        precision: of weights, inputs and outputs.
        quantize: type of the language model's matrices, `precision` if None.
        optimize: backend that gets a decoder of its own.
        progress: told of every step of an export.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        model: str,
        revision: str | None,
        folder: Path,
        max_prompt: int,
        precision: Precision = "fp32",
        quantize: WeightType | None = None,
        optimize: Optimize | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._revision = revision
        self._folder = folder
        self._max_prompt = max_prompt
        self._precision = precision
        self._quantize = quantize
        self._optimize = optimize
        self._progress = progress

    def get(self, options: PtpOptions) -> Path:
        """Return the bundle's folder, exported first if it is not there.

        Raises:
            PtpError: see `ptp.export.pipeline.export`.
        """
        config = self._config(options)
        if not config.out.exists():
            export(config, self._progress)
        return config.out

    def _config(self, options: PtpOptions) -> ExportConfig:
        tiling = self._checkpoint.tiling
        sizes = Schedule(keep=Fraction(1), side=tiling.tokens_per_side, grids=tiling.grids)
        most = min(Fraction(1), Fraction(TOPK_LIMIT - sizes.num_newlines, sizes.num_tokens))
        config = ExportConfig(
            model=self._model,
            revision=self._revision,
            out=self._folder,
            keep=min(USUAL_KEEP, most),
            keep_range=(Fraction(1, sizes.num_tokens), most),
            instruction=options.instruction,
            region=options.region,
            newline=options.newline,
            max_prompt=self._max_prompt,
            precision=self._precision,
            quantize=self._quantize,
            optimize=self._optimize,
            opset=QUANTIZED_OPSET if self._quantize else DEFAULT_OPSET,
        )
        facts = [self._made_from, *(str(value) for name, value in vars(config).items() if name not in ("model", "out"))]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        name = f"{options.instruction}-{options.region}-newline-{options.newline}-{digest[:16]}"
        return replace(config, out=self._folder / name)

    @cached_property
    def _made_from(self) -> list[str]:
        """What a bundle is made of beside the options: the checkpoint, libraries, and the code of the graphs.

        The code, because the package's version number does not change with every edit.
        """
        checkpoint = self._checkpoint.folder
        small = {path for pattern in SMALL_FILES for path in checkpoint.glob(pattern)}
        code = {
            path
            for package in (ptp.export, ptp.ptp_graph)
            for folder in package.__path__
            for path in Path(folder).rglob("*.py")
        }
        return [weights_sha256(checkpoint), *tool_versions().values(), *map(sha256_of, sorted(small) + sorted(code))]


def load_pipeline(folder: Path, positions: PositionPolicy, *, threads: int | None = None) -> Pipeline:
    """Load a bundle under either position policy, which only its manifest holds: the graphs are the same.

    Raises:
        BundleError: the bundle was altered.
        BackendError: a graph cannot be loaded.
    """
    bundle = open_bundle(folder)
    pruning = bundle.manifest.pruning.model_copy(update={"positions": positions})
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"pruning": pruning}))
    return Pipeline(bundle, graph_loader("onnxruntime", provider="cpu", threads=threads))


class OnnxAnswerer:
    """A bundle at one keep and one α (implements `Answerer`).

    Args:
        pipeline: the loaded bundle.
        keep: fraction of visual tokens kept.
        alpha: weight of the question; the bundle's own if None.
        max_new_tokens: most tokens of an answer.
    """

    def __init__(self, pipeline: Pipeline, *, keep: Fraction, alpha: Alpha | None, max_new_tokens: int) -> None:
        self._pipeline = pipeline
        self._keep = keep
        self._alpha = alpha
        self._max_new_tokens = max_new_tokens

    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """See `Answerer.answer`. Where the question has no say in the choice, the image is encoded once.

        Raises:
            PtpError: see `Pipeline.stream`.
        """
        pipeline = self._pipeline
        if pipeline.manifest.pruning.instruction == "none":
            visuals = [pipeline.encode(image, keep=self._keep)] * len(questions)
        else:
            visuals = [pipeline.encode(image, text, alpha=self._alpha, keep=self._keep) for text in questions]
        answers = (
            pipeline.stream_from(visual, text, max_new_tokens=self._max_new_tokens).answer()
            for visual, text in zip(visuals, questions, strict=True)
        )
        return [answer.text.strip() for answer in answers]
