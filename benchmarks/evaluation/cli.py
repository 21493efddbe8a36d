"""The `eval` verb."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ptp.benchmarks.evaluation.metrics import MetricName
from ptp.budgets import parse_fraction
from ptp.bundle.manifest import WeightType
from ptp.bundle.writer import replacing
from ptp.console import going_on, shown, to_json
from ptp.errors import ConfigError

if TYPE_CHECKING:
    from ptp.benchmarks.evaluation.run import Progress
    from ptp.benchmarks.evaluation.task import Task
    from ptp.export.graph_writer import Progress as Steps
    from ptp.results import Results

EXTRAS = {"torch": "export", "transformers": "export", "onnx_ir": "export", "matplotlib": "eval"}
"""What an evaluation needs, and the extra that brings it."""

DEMO_IMAGES = 200

Opt = typer.Option
Split = Literal["test", "validation", "heldout"]


def evaluate(
    model: Annotated[str, Opt(help="short name (demo, llava-next, …), Hugging Face id, or checkpoint folder")] = "demo",
    task: Annotated[str, Opt(metavar="demo|FILE", help="demo, or a file: JSONL, TextVQA, POPE")] = "demo",
    split: Annotated[Split | None, Opt(help="of the demo task (default: test)")] = None,
    images: Annotated[Path | None, Opt(help="folder of the file's images (default: the file's own)")] = None,
    metric: Annotated[MetricName | None, Opt(help="how a file's answers are graded (default: by its form)")] = None,
    prompt_suffix: Annotated[
        str | None, Opt(help="text added to each question of a file (default: by its form)")
    ] = None,
    keep: Annotated[
        str, Opt(metavar="R,…", help="fractions of visual tokens kept; 1 is the whole image")
    ] = "1,0.5,0.25,0.15,0.1,0.05",
    methods: Annotated[
        str | None, Opt(metavar="A,…|all", help="what is compared (default: PTP and one form of each other method)")
    ] = None,
    limit: Annotated[int | None, Opt(help=f"first images only (default: all of a file, {DEMO_IMAGES} of demo)")] = None,
    out: Annotated[Path | None, Opt(help="folder to write, or to go on with (default: eval-<model>-<task>)")] = None,
    quantize: Annotated[WeightType | None, Opt(help="type of the language model's matrices in PTP's bundles")] = None,
    bundles: Annotated[Path | None, Opt(help="folder of exported bundles (default: <out>/bundles)")] = None,
    force: Annotated[bool, Opt("--force", help="drop the answers that are at --out")] = False,
    as_json: Annotated[bool, Opt("--json", help="print results.json instead of a table")] = False,
) -> None:
    """Measure accuracy against the fraction of visual tokens kept, and compare PTP with other methods."""
    _require_extras()
    from ptp.benchmarks.evaluation.answerers import Answerers
    from ptp.benchmarks.evaluation.plot import draw
    from ptp.benchmarks.evaluation.records import FILE, Records
    from ptp.benchmarks.evaluation.run import evaluate as run_evaluation
    from ptp.benchmarks.evaluation.run import plan, sum_up
    from ptp.benchmarks.evaluation.tables import to_markdown
    from ptp.benchmarks.evaluation.variants import DEFAULT_VARIANTS, VARIANTS

    named = DEFAULT_VARIANTS if methods is None else tuple(VARIANTS) if methods == "all" else methods.split(",")
    runs = plan(VARIANTS, named, [parse_fraction(text, "--keep") for text in keep.split(",")])
    questions = open_task(task, split, images, metric, prompt_suffix, limit)
    name = Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model
    folder = out or Path(f"eval-{Path(name).name}-{questions.name.replace('/', '-')}")
    with (
        going_on(folder),
        _progress() as (answered, step),
        Answerers(model, bundles or folder / "bundles", quantize=quantize, progress=step) as answerers,
    ):
        settings = {
            "task": questions.name,
            "questions": questions.fingerprint,
            "metric": questions.metric,
            "prompt suffix": questions.prompt_suffix,
            "weights": answerers.weights,
        } | ({"quantize": quantize} if quantize else {})
        with Records(folder, settings, force=force) as records:
            run_evaluation(questions, runs, answerers, records, answered)
            results = sum_up(
                questions, runs, answerers, records, model=name, weights=answerers.weights, tools=answerers.tools
            )
    for name, text in (("results.json", results.model_dump_json(indent=1) + "\n"), ("table.md", to_markdown(results))):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    pictures = draw(results, folder)
    if as_json:
        typer.echo(to_json(results.model_dump(mode="json")))
        return
    console = Console(highlight=False)
    console.print(_table(results))
    for path in (folder / "table.md", *pictures, folder / "results.json", folder / FILE):
        console.print(shown(path), markup=False, soft_wrap=True)


def open_task(
    task: str,
    split: Split | None,
    images: Path | None,
    metric: MetricName | None,
    prompt_suffix: str | None,
    limit: int | None,
) -> "Task":
    """Return what `--task` names, with the options that are for it.

    Raises:
        ConfigError: an option is for another kind of task, the limit is none, or the file cannot be used.
    """
    if limit is not None and limit < 1:
        raise ConfigError("--limit is a number of images", got=limit, expected="1 or more")
    if task == "demo":
        from ptp.benchmarks.evaluation.demo_task import DemoTask

        given = {"--images": images, "--metric": metric, "--prompt-suffix": prompt_suffix}
        useless = [option for option, value in given.items() if value is not None]
        if useless:
            raise ConfigError("the demo task has its own images and grading", got=", ".join(useless))
        return DemoTask(split or "test", limit or DEMO_IMAGES)
    if split is not None:
        raise ConfigError("--split is of the demo task", got=f"--task {task}", do="name the split's file")
    from ptp.benchmarks.evaluation.jsonl_task import FileTask

    return FileTask(Path(task), images=images, metric=metric, limit=limit, prompt_suffix=prompt_suffix)


def _require_extras() -> None:
    missing = [name for name in EXTRAS if find_spec(name) is None]
    if missing:
        needed = ",".join(dict.fromkeys(EXTRAS[name] for name in missing))
        raise ConfigError(
            f"evaluating needs the extra `{needed}`",
            got=f"no module {', '.join(missing)}",
            do=f'pip install "ptp-export[{needed}]"',
        )


def _table(results: "Results") -> Table:
    from ptp.benchmarks.evaluation.tables import FAMILIES, best_at, budget_header, by_method, keeps_of, percent, title

    caption = "accuracy in percent, ± half of its 95 % interval"
    table = Table(title=Text(title(results)), caption=caption)
    table.add_column("method", no_wrap=True)
    best = {keep: best_at(results, keep) for keep in keeps_of(results)}
    for keep in best:
        table.add_column(budget_header(results, keep).replace(" ", "\n", 1).replace(", ", "\n"), justify="right")
    for method, rows in by_method(results).items():
        cells = [f"{method}\n[dim]{FAMILIES[next(iter(rows.values())).family]}[/]"]
        for keep, names in best.items():
            row = rows.get(keep)
            style = "bold" if method in names else "none"
            half = percent((row.high - row.low) / 2) if row else ""
            cells.append(f"[{style}]{percent(row.accuracy)}[/]\n[dim]±{half}[/]" if row else "")
        table.add_row(*cells)
    return table


@contextmanager
def _progress() -> "Iterator[tuple[Progress, Steps]]":
    """Yield what shows questions answered, and an export's steps below it, on stderr; silent in a log file."""
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        main = progress.add_task("starting", total=None)
        export = progress.add_task("", total=None, visible=False)

        def answered(what: str, done: int, total: int) -> None:
            progress.update(main, description=what, completed=done, total=total)
            progress.update(export, visible=False)

        def step(what: str, done: int | None, total: int | None) -> None:
            progress.update(export, description=f"export: {what}", completed=done or 0, total=total, visible=True)

        yield answered, step
