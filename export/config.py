"""What a user asks an export to do, validated on construction."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

from ptp.anyres import Grid
from ptp.bundle.manifest import Instruction, NewlinePolicy, PositionPolicy, Precision, RegionRule, ThumbnailPolicy
from ptp.errors import ConfigError

DEFAULT_ALPHA = 0.5
"""α of the paper."""

REGION_TEMPERATURE = 0.1
"""τ of the softmax over crops; our choice, the paper does not state one."""

Opset = Literal[18, 19, 20]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of one export.

    Args:
        model: short name, Hugging Face id, or checkpoint folder.
        out: folder to write.
        keep: fraction of visual tokens kept, 0 < keep ≤ 1.
        instruction: how the question takes part in the choice.
        alpha: default weight of the question, 0 to 1; 0.5 if None. Not with `instruction="none"`.
        precision: fp32 or fp16 weights, inputs and outputs.
        max_prompt: most text tokens of a prompt, template included.
        region: what a crop's share of the budget follows.
        thumbnail: where the thumbnail's budget comes from.
        newline: keep every row separator, or drop them all.
        positions: kept tokens keep their packed positions, or are renumbered.
        grid: the one crop grid (rows, columns) to export for; all of the checkpoint's by default.
        opset: ONNX opset of every graph.
        revision: branch, tag or commit of a Hugging Face id.
        force: replace a bundle that stands at `out`.

    Raises:
        ConfigError: a value cannot be used.
    """

    model: str
    out: Path
    keep: Fraction
    instruction: Instruction = "attention"
    alpha: float | None = None
    precision: Precision = "fp32"
    max_prompt: int = 256
    region: RegionRule = "cls_cosine"
    thumbnail: ThumbnailPolicy = "ratio"
    newline: NewlinePolicy = "keep"
    positions: PositionPolicy = "original"
    grid: Grid | None = None
    opset: Opset = 20
    revision: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(
                "--keep is a fraction of the visual tokens", got=float(self.keep), expected="0 < keep ≤ 1"
            )
        if self.instruction == "none" and self.alpha is not None:
            raise ConfigError("--alpha weighs the question, and --instruction none does not look at it")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ConfigError("--alpha is the weight of the question", got=self.alpha, expected="0 to 1")
        if not 1 <= self.max_prompt <= 8192:
            raise ConfigError("--max-prompt is a number of text tokens", got=self.max_prompt, expected="1 to 8192")
        if self.opset not in get_args(Opset):
            raise ConfigError(
                "--opset is outside what TensorRT's parsers take", got=self.opset, expected="18, 19 or 20"
            )


def parse_keep(keep: str | None, reduction: str | None) -> Fraction:
    """Return the fraction to keep from `--keep` or `--reduction`, exactly as written in decimal.

    Raises:
        ConfigError: both or neither are given, or one is not a number in range.
    """
    if (keep is None) == (reduction is None):
        got = "neither" if keep is None else f"--keep {keep} and --reduction {reduction}"
        raise ConfigError(
            "say how many tokens to keep once", got=got, expected="--keep R or --reduction R (= 1 − keep)"
        )
    name, text = ("--keep", keep) if keep is not None else ("--reduction", reduction)
    try:
        value = Fraction(str(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{name} is not a number", got=repr(text), expected="a fraction such as 0.25") from error
    if name == "--reduction" and not 0 <= value < 1:
        raise ConfigError("--reduction is the fraction of tokens dropped", got=text, expected="0 ≤ reduction < 1")
    if name == "--keep" and not 0 < value <= 1:
        raise ConfigError("--keep is the fraction of tokens kept", got=text, expected="0 < keep ≤ 1")
    return value if name == "--keep" else 1 - value


def parse_grid(text: str) -> Grid:
    """Return (rows, columns) from `RxC`.

    Raises:
        ConfigError: not of that form.
    """
    rows, _, columns = text.lower().partition("x")
    if not (rows.isascii() and columns.isascii() and rows.isdigit() and columns.isdigit()):
        raise ConfigError("--grid is not a grid", got=repr(text), expected="ROWSxCOLUMNS such as 2x2")
    return int(rows), int(columns)
