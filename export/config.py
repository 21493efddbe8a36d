"""What a user asks an export to do, validated on construction."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

from ptp.alpha import parse_alpha
from ptp.anyres import Grid
from ptp.budgets import parse_fraction
from ptp.bundle.contract import MAX_BATCH
from ptp.bundle.manifest import (
    Alpha,
    BlockSize,
    Instruction,
    NewlinePolicy,
    PositionPolicy,
    Precision,
    Quantization,
    RegionRule,
    ThumbnailPolicy,
    WeightType,
)
from ptp.errors import ConfigError

KeepRange = tuple[Fraction, Fraction]
"""Smallest and largest fraction that may be asked for at run time."""

DEFAULT_BLOCK_SIZE: BlockSize = 32
"""128 saves a twelfth of an INT4 file, with more error in the weights (docs/quantization.md)."""

DEFAULT_ALPHA = 0.5
"""α of the paper."""

REGION_TEMPERATURE = 0.5
"""τ of the softmax over crops; our choice, the paper does not state one."""

Opset = Literal[18, 19, 20, 21]

DEFAULT_OPSET: Opset = 20
QUANTIZED_OPSET: Opset = 21
"""The first whose DequantizeLinear has blocks."""

Optimize = Literal["onnxruntime"]
"""A backend that an export may hold a graph for which the others cannot read."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of one export.

    Args:
        model: short name, Hugging Face id, or checkpoint folder.
        out: folder to write.
        keep: fraction of visual tokens kept, 0 < keep ≤ 1.
        keep_range: smallest and largest fraction that may be asked for at run time; None fixes `keep` in the graph.
        instruction: how the question takes part in the choice.
        alpha: default weight of the question, 0 to 1 or `auto`; 0.5 if None. Not with `instruction="none"`.
        precision: fp32 or fp16 weights, inputs and outputs.
        quantize: type of the language model's matrices, `precision` if None; needs opset 21.
        block_size: values of a quantised matrix that share a scale; 32 if None. With `quantize` only.
        max_prompt: most text tokens of a prompt, template included.
        batch: images of one call of the vision graph, each with its own size, grid and question.
        region: what a crop's share of the budget follows.
        thumbnail: where the thumbnail's budget comes from.
        newline: keep every row separator, or drop them all.
        positions: kept tokens keep their packed positions, or are renumbered.
        grid: the one crop grid (rows, columns) to export for; all of the checkpoint's by default.
        opset: ONNX opset of every graph; 21 with `quantize` only.
        optimize: write further graphs that only this backend runs, and runs faster.
        revision: branch, tag or commit of a Hugging Face id.
        force: replace a bundle that stands at `out`.

    Raises:
        ConfigError: a value cannot be used.
    """

    model: str
    out: Path
    keep: Fraction
    keep_range: KeepRange | None = None
    instruction: Instruction = "attention"
    alpha: Alpha | None = None
    precision: Precision = "fp32"
    quantize: WeightType | None = None
    block_size: BlockSize | None = None
    max_prompt: int = 256
    batch: int = 1
    region: RegionRule = "cls_cosine"
    thumbnail: ThumbnailPolicy = "ratio"
    newline: NewlinePolicy = "keep"
    positions: PositionPolicy = "original"
    grid: Grid | None = None
    opset: Opset = DEFAULT_OPSET
    optimize: Optimize | None = None
    revision: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(
                "--keep is a fraction of the visual tokens", got=float(self.keep), expected="0 < keep ≤ 1"
            )
        if self.instruction == "none" and self.alpha is not None:
            raise ConfigError("--alpha weighs the question, and --instruction none does not look at it")
        if self.alpha is not None:
            parse_alpha(self.alpha)
        if not 1 <= self.batch <= MAX_BATCH:
            raise ConfigError("--batch is a number of images", got=self.batch, expected=f"1 to {MAX_BATCH}")
        if not 1 <= self.max_prompt <= 8192:
            raise ConfigError("--max-prompt is a number of text tokens", got=self.max_prompt, expected="1 to 8192")
        if self.quantize is None and self.block_size is not None:
            raise ConfigError("--block-size is of quantised weights", do="add --quantize int8 or int4")
        if self.block_size is not None and self.block_size not in get_args(BlockSize):
            raise ConfigError("--block-size is a number of weights", got=self.block_size, expected="32 or 128")
        expected = "18, 19 or 20" if self.quantize is None else f"{QUANTIZED_OPSET} with --quantize"
        if self.opset not in get_args(Opset) or (self.opset == QUANTIZED_OPSET) != (self.quantize is not None):
            raise ConfigError("--opset is outside what TensorRT's parsers take", got=self.opset, expected=expected)
        if self.optimize not in (None, *get_args(Optimize)):
            raise ConfigError(
                "--optimize is a backend with a graph of its own", got=self.optimize, expected="onnxruntime"
            )

    @property
    def quantization(self) -> Quantization | None:
        """How the language model's matrices are stored, None for as they are."""
        if self.quantize is None:
            return None
        return Quantization(weights=self.quantize, block_size=self.block_size or DEFAULT_BLOCK_SIZE)


def parse_keep(keep: str | None, reduction: str | None) -> tuple[Fraction, KeepRange | None]:
    """Return the fraction to keep from `--keep` or `--reduction`, exactly as written, and its range if one is given.

    Args:
        keep: a fraction, or `min:opt:max`.
        reduction: a fraction.

    Raises:
        ConfigError: both or neither are given, or one is not a number in range.
    """
    if (keep is None) == (reduction is None):
        got = "neither" if keep is None else f"--keep {keep} and --reduction {reduction}"
        raise ConfigError(
            "say how many tokens to keep once", got=got, expected="--keep R or --reduction R (= 1 − keep)"
        )
    if reduction is not None:
        value = parse_fraction(reduction, "--reduction")
        if not 0 <= value < 1:
            raise ConfigError(
                "--reduction is the fraction of tokens dropped", got=reduction, expected="0 ≤ reduction < 1"
            )
        return 1 - value, None
    values = [parse_fraction(text, "--keep") for text in str(keep).split(":")]
    if any(not 0 < value <= 1 for value in values):
        raise ConfigError("--keep is the fraction of tokens kept", got=keep, expected="0 < keep ≤ 1")
    if len(values) == 1:
        return values[0], None
    if len(values) != 3 or values != sorted(values):
        raise ConfigError("--keep is not a range", got=keep, expected="MIN:OPT:MAX in this order, such as 0.1:0.25:0.5")
    return values[1], (values[0], values[2])


def parse_grid(text: str) -> Grid:
    """Return (rows, columns) from `RxC`.

    Raises:
        ConfigError: not of that form.
    """
    rows, _, columns = text.lower().partition("x")
    if not (rows.isascii() and columns.isascii() and rows.isdigit() and columns.isdigit()):
        raise ConfigError("--grid is not a grid", got=repr(text), expected="ROWSxCOLUMNS such as 2x2")
    return int(rows), int(columns)
