"""Results as Markdown, and as cells for any other table."""

from collections.abc import Callable, Iterable, Sequence

from ptp.benchmarks.evaluation.statistics import FEW_IMAGES
from ptp.results import Family, Results, Row

FAMILIES: dict[Family, str] = {
    "unpruned": "nothing is pruned",
    "ptp": "PTP",
    "question": "other, question seen",
    "blind": "other, question unseen",
}
"""Families in the order of the tables, in words."""

NOTHING = "–"

INTERVALS = (
    "Accuracy in percent with its 95 % interval, images resampled. Bold: the highest of the column, clearly so or "
    "not. K: the visual tokens that the language model sees, row separators included."
)


def by_method(results: Results) -> dict[str, dict[float, Row]]:
    """Return the rows by method and keep; methods by family, then in the order of the results."""
    methods: dict[str, dict[float, Row]] = {}
    order = list(FAMILIES)
    for row in sorted(results.rows, key=lambda row: order.index(row.family)):
        methods.setdefault(row.method, {})[row.keep] = row
    return methods


def keeps_of(results: Results) -> list[float]:
    """Return the budgets, the largest first."""
    return sorted({row.keep for row in results.rows}, reverse=True)


def best_at(results: Results, keep: float) -> set[str]:
    """Return the methods with the highest accuracy at a budget; none where there is no other to compare with."""
    rows = [row for row in results.rows if row.keep == keep]
    highest = max(row.accuracy for row in rows)
    return {row.method for row in rows if row.accuracy == highest} if len(rows) > 1 else set()


def budget_header(results: Results, keep: float) -> str:
    """Return the head of a budget's column, with K: one number, or the smallest and the largest of the methods."""
    counts = [row.num_kept for row in results.rows if row.keep == keep]
    low, high = min(counts), max(counts)
    return f"keep {keep:g}, K {low}" + (f"–{high}" if high > low else "")


def percent(value: float) -> str:
    """Return a share in percent, with one decimal."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def title(results: Results) -> str:
    """Return what was asked of which model, in one line."""
    first = results.rows[0]
    return f"{results.model} on {results.task}: {first.cases} questions about {first.images} images"


def to_markdown(results: Results) -> str:
    """Return all tables: accuracy, further figures, differences, accuracy by kind of question.

    Args:
        results: with one row at least.
    """
    parts = [f"# {title(results)}", INTERVALS]
    if results.rows[0].images < FEW_IMAGES:
        parts.append(f"With fewer than {FEW_IMAGES} images the intervals are too narrow.")
    parts += [_accuracy(results), *_summaries(results), *_differences(results), *_kinds(results)]
    tools = ", ".join(f"{name} {version}" for name, version in results.tools.items())
    parts.append(f"Weights {results.weights[:12]}… · {tools}")
    return "\n\n".join(parts) + "\n"


def _accuracy(results: Results) -> str:
    keeps, best = keeps_of(results), {keep: best_at(results, keep) for keep in keeps_of(results)}

    def cell(row: Row) -> str:
        value = f"**{percent(row.accuracy)}**" if row.method in best[row.keep] else percent(row.accuracy)
        return f"{value} [{percent(row.low)}, {percent(row.high)}]"

    return _by_keep(results, keeps, cell)


def _summaries(results: Results) -> list[str]:
    def table(name: str) -> str:
        return _by_keep(results, keeps_of(results), lambda row: percent(row.summary[name]))

    names = dict.fromkeys(name for row in results.rows for name in row.summary)
    return [f"## {name.replace('_', ' ')}\n\n{table(name)}" for name in names]


def _by_keep(results: Results, keeps: Sequence[float], cell: Callable[[Row], str]) -> str:
    head = ["method", "which is", *(budget_header(results, keep) for keep in keeps)]
    body = []
    for method, rows in by_method(results).items():
        family = FAMILIES[next(iter(rows.values())).family]
        body.append([method, family, *(cell(rows[keep]) if keep in rows else NOTHING for keep in keeps)])
    return _table(head, body)


def _differences(results: Results) -> list[str]:
    if not results.differences:
        return []
    ours = results.differences[0].method
    keeps = sorted({entry.keep for entry in results.differences}, reverse=True)
    cells: dict[str, dict[float, str]] = {}
    for entry in results.differences:
        mean = f"**{signed(entry.mean)}**" if entry.low > 0 or entry.high < 0 else signed(entry.mean)
        text = f"{mean} [{signed(entry.low)}, {signed(entry.high)}]"
        cells.setdefault(entry.against, {})[entry.keep] = text
    body = [[against, *(row.get(keep, NOTHING) for keep in keeps)] for against, row in cells.items()]
    return [
        f"## {ours} against each other method",
        f"Accuracy of {ours} less that of the other on the same questions, in percentage points, with the 95 % "
        "interval of the difference, images resampled. Bold: the interval does not contain 0. Each interval stands for "
        "itself: of twenty comparisons of equals, one is bold by chance. The whole image is one and the same for "
        "every keep.",
        _table([f"{ours} against", *(f"keep {keep:g}" for keep in keeps)], body),
    ]


def _kinds(results: Results) -> list[str]:
    kinds = list(dict.fromkeys(kind for row in results.rows for kind in row.kinds))
    if len(kinds) < 2:
        return []
    parts = [
        "## By kind of question",
        "Accuracy in percent, without intervals: a kind has fewer questions than the whole.",
    ]
    for keep in keeps_of(results):
        rows = [methods[keep] for methods in by_method(results).values() if keep in methods]
        body = [[row.method, *(percent(row.kinds[kind]) for kind in kinds)] for row in rows]
        parts.append(f"### {budget_header(results, keep)}\n\n" + _table(["method", *kinds], body))
    return parts


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in (head, rule, *body))
