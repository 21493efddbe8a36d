"""Everything that can answer for one checkpoint, opened by variant and budget."""

from collections.abc import Hashable
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from ptp import Pipeline
from ptp.benchmarks.evaluation.onnx_answerer import Bundles, OnnxAnswerer, load_pipeline
from ptp.benchmarks.evaluation.task import Answerer
from ptp.benchmarks.evaluation.transformers_answerer import TransformersAnswerer, TransformersModel
from ptp.benchmarks.evaluation.variants import PtpOptions, Variant
from ptp.benchmarks.methods import METHODS
from ptp.bundle.manifest import Levels, WeightType
from ptp.errors import ConfigError
from ptp.export.checkpoint import open_checkpoint
from ptp.export.graph_writer import Progress
from ptp.export.pipeline import tool_versions
from ptp.ptp_graph.schedule import Schedule
from ptp.results import weights_sha256


class Answerers:
    """The answerers of a checkpoint; a context manager that lets go of the models when it is left.

    At most one bundle and transformers' model are loaded at a time. An answerer holds on to its own model: let go of
    one before the next is opened, and take the variants of a bundle after each other.

    Args:
        model: short name, Hugging Face id, or checkpoint folder.
        cache: folder where exported bundles stay from run to run.
        revision: branch, tag or commit of a Hugging Face id.
        max_prompt: most text tokens of a prompt, template included.
        max_new_tokens: most tokens of an answer.
        threads: CPU threads of ONNX Runtime; its choice if None.
        quantize: type of the language model's matrices in PTP's bundles; not in what transformers answers.
        progress: told of every step of an export.

    Raises:
        CheckpointError: the checkpoint cannot be found or read.
    """

    def __init__(
        self,
        model: str,
        cache: Path,
        *,
        revision: str | None = None,
        max_prompt: int = 256,
        max_new_tokens: int = 32,
        threads: int | None = None,
        quantize: WeightType | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._checkpoint = open_checkpoint(model, revision, weights=True)
        self._tiling = self._checkpoint.tiling
        self._bundles = Bundles(
            self._checkpoint,
            model=model,
            revision=revision,
            folder=cache,
            max_prompt=max_prompt,
            quantize=quantize,
            progress=progress,
        )
        self._max_new_tokens = max_new_tokens
        self._threads = threads
        self._transformers: TransformersModel | None = None
        self._pipeline: tuple[Hashable, Pipeline] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transformers = self._pipeline = None

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the checkpoint's weights (`ptp.results.weights_sha256`)."""
        return weights_sha256(self._checkpoint.folder)

    @property
    def tools(self) -> dict[str, str]:
        """Versions of what exports and of what answers."""
        return tool_versions()

    def num_kept(self, variant: Variant, keep: Fraction) -> int:
        """Return the visual tokens that a variant keeps of the largest grid, newline tokens among them.

        Raises:
            ConfigError: `keep` is not one that the variant can have.
        """
        return self._levels(variant, keep).total

    def open(self, variant: Variant, keep: Fraction) -> Answerer:
        """Return a variant at a budget, loaded; a bundle that is not in the cache is exported first.

        Args:
            variant: what answers.
            keep: fraction of visual tokens kept, 0 < keep ≤ 1; 1 for the whole image.

        Raises:
            PtpError: `keep` is not one that the variant can have, or the checkpoint cannot be loaded or exported.
        """
        levels = self._levels(variant, keep)
        if variant.ptp:
            pipeline = self._load_pipeline(variant.ptp)
            return OnnxAnswerer(pipeline, keep=keep, alpha=variant.ptp.alpha, max_new_tokens=self._max_new_tokens)
        method = METHODS[variant.method] if variant.method else None
        if self._transformers is None:
            self._transformers = TransformersModel(self._checkpoint, max_new_tokens=self._max_new_tokens)
        return TransformersAnswerer(self._transformers, method, levels.thumbnail + levels.crops)

    def _load_pipeline(self, options: PtpOptions) -> Pipeline:
        folder = self._bundles.get(options)
        key = (folder, options.positions)
        if self._pipeline is None or self._pipeline[0] != key:
            self._pipeline = None  # before the next is loaded
            self._pipeline = (key, load_pipeline(folder, options.positions, threads=self._threads))
        return self._pipeline[1]

    def _levels(self, variant: Variant, keep: Fraction) -> Levels:
        if variant.family == "unpruned" and keep != 1:
            raise ConfigError(f"{variant.name} keeps the whole image", got=f"keep {keep}", expected=1)
        newline = variant.ptp.newline if variant.ptp else "keep"
        return Schedule(keep=keep, side=self._tiling.tokens_per_side, grids=self._tiling.grids, newline=newline).levels
