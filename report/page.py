"""`report.html`: an export on one page, for people; nothing in it is loaded from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ptp.bundle import Bundle, Manifest
from ptp.bundle.summary import budget_line, human_bytes, precision_line
from ptp.report.curve import draw_curve, methods_of
from ptp.report.evaluation import Evaluation
from ptp.report.pictures import Progress, show_examples
from ptp.results import Difference, Family, Results, Row

REPORT_NAME = "report.html"
WIDTHS = (860.0, 400.0)
"""The curve is drawn for a desk and for a phone; the style sheet shows one of them."""

DEFAULTS = {"alpha": 0.5, "region": "cls_cosine", "thumbnail": "ratio", "newline": "keep", "positions": "original"}
"""What `ptp-export` does unless told otherwise."""

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["human_bytes"] = human_bytes


@dataclass(frozen=True, kw_only=True)
class Level:
    """Tokens of a level of the pyramid: kept, and in all."""

    name: str
    kept: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Bytes of an engine of the export: what it needs by the estimate, and what its builder took.

    Attributes:
        name: of the engine.
        run_bytes: estimated for a run.
        build_bytes: estimated for the builder's process.
        measured_bytes: its peak at export; None where it was not built then.
    """

    name: str
    run_bytes: int
    build_bytes: int
    measured_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A method's line of the table: one cell for each keep, None where it was not measured."""

    method: str
    family: Family
    cells: tuple[Row | None, ...]
    difference: Difference | None


def write_report(
    bundle: Bundle,
    evaluation: Evaluation,
    memory: Sequence[EngineMemory] = (),
    progress: Progress | None = None,
) -> Path:
    """Write `report.html` into a bundle's folder.

    Args:
        bundle: a bundle whose files are those of its manifest.
        evaluation: of its checkpoint.
        memory: of its engines; without any, the report has no such section.
        progress: called with questions asked and questions in all.

    Returns:
        Where it was written.

    Raises:
        PtpError: an image cannot be read or a graph failed.
    """
    manifest, results = bundle.manifest, evaluation.results
    keep, method = manifest.pruning.keep, own_method(manifest)
    keeps = sorted({row.keep for row in results.rows}, reverse=True)
    text = _templates.get_template("page.html.jinja").render(
        manifest=manifest,
        budget_line=budget_line(manifest.pruning, manifest.tiling),
        precision_line=precision_line(manifest.model),
        levels=levels(manifest),
        results=results,
        is_of_these_weights=evaluation.is_of_these_weights,
        cases=max(row.cases for row in results.rows),
        images=max(row.images for row in results.rows),
        curves=[draw_curve(results, keep=keep, method=method, width=width) for width in WIDTHS],
        method=method,
        keeps=keeps,
        lines=table(results, keeps, keep),
        memory=memory,
        shown=show_examples(bundle, evaluation.examples, progress or (lambda done, total: None)),
    )
    path = bundle.folder / REPORT_NAME
    path.write_text(text, encoding="utf-8")
    return path


def own_method(manifest: Manifest) -> str:
    """Return the name that an evaluation gives to what the bundle does: `ptp`, and every switch not at its default."""
    pruning = manifest.pruning
    parts = ["ptp"] if pruning.instruction == "attention" else ["ptp", pruning.instruction]
    if pruning.instruction != "none" and pruning.alpha != DEFAULTS["alpha"]:
        parts.append(f"alpha-{pruning.alpha if pruning.alpha == 'auto' else format(pruning.alpha, 'g')}")
    for switch in ("region", "thumbnail", "newline", "positions"):
        value = getattr(pruning, switch)
        if value != DEFAULTS[switch]:
            parts.append(f"{switch}-{value}".replace("_", "-"))
    return "-".join(parts)


def levels(manifest: Manifest) -> tuple[Level, ...]:
    """Return the budget of each level, beside what the largest image has there."""
    budgets, tiling = manifest.pruning.levels, manifest.tiling
    tokens = tiling.tokens_per_tile
    rows = tiling.tokens_per_side * max(rows for rows, _ in tiling.grids)
    return (
        Level(name="thumbnail", kept=budgets.thumbnail, tokens=tokens),
        Level(name="crops", kept=budgets.crops, tokens=tokens * (tiling.max_tiles - 1)),
        Level(name="newline", kept=budgets.newline, tokens=rows),
    )


def table(results: Results, keeps: Sequence[float], keep: float) -> tuple[Line, ...]:
    """Return the accuracies in the order of `keeps`, and at `keep` how much better `ptp` is than each method."""
    differences = {x.against: x for x in results.differences if x.method == "ptp" and x.keep == keep}
    return tuple(
        Line(
            method=method,
            family=rows[0].family,
            cells=tuple({row.keep: row for row in rows}.get(column) for column in keeps),
            difference=differences.get(method),
        )
        for method, rows in methods_of(results).items()
    )
