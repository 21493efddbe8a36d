"""What an evaluation compares: the whole image, PTP with each of its switches, and other methods."""

from dataclasses import dataclass
from typing import get_args

from ptp.benchmarks.methods import METHODS
from ptp.bundle.manifest import Alpha, Instruction, NewlinePolicy, PositionPolicy, RegionRule
from ptp.results import Family

DEFAULT_REGION: RegionRule = "cls_cosine"


@dataclass(frozen=True, kw_only=True)
class PtpOptions:
    """How PTP chooses tokens; the defaults are those of an export.

    Attributes:
        instruction: how the question takes part in the choice.
        region: what a crop's share of the budget follows.
        alpha: weight of the question; None leaves the default, and is the only value without an instruction.
        newline: keep every row separator, or drop them all.
        positions: kept tokens keep their packed positions, or are renumbered.
    """

    instruction: Instruction = "attention"
    region: RegionRule = DEFAULT_REGION
    alpha: Alpha | None = None
    newline: NewlinePolicy = "keep"
    positions: PositionPolicy = "original"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of a comparison.

    Attributes:
        name: in tables and on the command line.
        family: what it may look at.
        ptp: how PTP runs, from an exported bundle; None if it does not.
        method: a key of `METHODS`, run on transformers; None for PTP and for the whole image.
    """

    name: str
    family: Family
    ptp: PtpOptions | None = None
    method: str | None = None


def _ptp(name: str, options: PtpOptions) -> Variant:
    return Variant(name=name, family="ptp", ptp=options)


def _all() -> list[Variant]:
    others = [region for region in get_args(RegionRule) if region != DEFAULT_REGION]
    alphas: tuple[Alpha, ...] = (0.0, 0.25, 0.75, 1.0, "auto")
    return [
        Variant(name="unpruned", family="unpruned"),
        _ptp("ptp", PtpOptions()),
        _ptp("ptp-similarity", PtpOptions(instruction="similarity")),
        _ptp("ptp-none", PtpOptions(instruction="none")),
        *(_ptp(f"ptp-region-{_dashed(region)}", PtpOptions(region=region)) for region in others),
        *(
            _ptp(f"ptp-none-region-{_dashed(region)}", PtpOptions(instruction="none", region=region))
            for region in others
        ),
        *(_ptp(f"ptp-alpha-{alpha if alpha == 'auto' else f'{alpha:g}'}", PtpOptions(alpha=alpha)) for alpha in alphas),
        _ptp("ptp-newline-drop", PtpOptions(newline="drop")),
        _ptp("ptp-positions-compact", PtpOptions(positions="compact")),
        # DART's text pivots are the prompt's largest embeddings, so another question can mean another choice
        *(
            Variant(name=name, family="question" if method.sees_question else "blind", method=name)
            for name, method in METHODS.items()
        ),
    ]


def _dashed(rule: str) -> str:
    return rule.replace("_", "-")


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _all()}
"""Everything that can be compared, by name."""

DEFAULT_VARIANTS = (
    "unpruned",
    "ptp",
    "ptp-similarity",
    "ptp-none",
    "random",
    "uniform",
    "thumbnail",
    "fastervlm",
    "hired",
    "globalcom2",
    "globalcom2_penultimate",
    "visionzip",
    "dart",
    "fastv",
)
"""One form of each: PTP's other switches and the other readings of a method are for those who ask for them."""
