"""The `bench` verb."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import progress as bars
from rich.console import Console

from ptp.benchmarks.speed.turn import Device
from ptp.budgets import parse_fraction
from ptp.bundle.manifest import Instruction, Precision
from ptp.console import going_on, to_json
from ptp.demo import CHECKPOINT
from ptp.errors import ConfigError
from ptp.runtime.backends.registry import usable_cpus

if TYPE_CHECKING:
    from ptp.benchmarks.speed.benchmark import Progress
    from ptp.export.checkpoint import Checkpoint
    from ptp.export.graph_writer import Progress as Steps

IMAGE = CHECKPOINT / "evaluation/scene-0.jpg"
MAX_PROMPT = 256

Opt = typer.Option


def bench(
    bundles: Annotated[list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="folders of ptp export")] = None,
    checkpoint: Annotated[
        str | None,
        Opt(help="short name, Hugging Face id or folder: measure transformers, too; exported without BUNDLE"),
    ] = None,
    keep: Annotated[
        str | None, Opt(metavar="R,…", help="fractions of visual tokens kept (default: 1,0.5,0.25,0.1, as bundles can)")
    ] = None,
    image: Annotated[Path, Opt(help="image file", show_default="a scene of the demo's")] = IMAGE,
    prompt: Annotated[str, Opt(help="question")] = "What is in the picture?",
    backend: Annotated[
        str | None, Opt(metavar="A,…", help="what runs the bundles (default: onnxruntime, openvino)")
    ] = None,
    peers: Annotated[
        str, Opt(metavar="A,…|none", help="of transformers, with --checkpoint: eager, compile")
    ] = "eager,compile",
    device: Annotated[Device, Opt(help="what ONNX Runtime and transformers run on")] = "cpu",
    dtype: Annotated[
        Precision | None, Opt(help="of the bundle that --checkpoint is exported to (default: fp32)")
    ] = None,
    openvino_genai: Annotated[Path | None, Opt(help="the checkpoint as optimum-cli converted it")] = None,
    instruction: Annotated[
        Instruction | None, Opt(help="of the bundle that --checkpoint is exported to (default: attention)")
    ] = None,
    repeats: Annotated[int, Opt(help="measured answers of each side at each keep")] = 5,
    warmup: Annotated[int, Opt(help="answers before each measured one")] = 1,
    threads: Annotated[int | None, Opt(help="CPU threads of every side (default: the CPUs there are)")] = None,
    max_new_tokens: Annotated[int, Opt(help="tokens of an answer; end tokens are not heeded")] = 32,
    out: Annotated[Path, Opt(help="folder to write, or to go on with")] = Path("bench"),
    force: Annotated[bool, Opt("--force", help="drop the turns that are at --out")] = False,
    as_json: Annotated[bool, Opt("--json", help="print results.json instead of a table")] = False,
) -> None:
    """Measure time to first token by stage, tokens per second and memory, beside other ways to run the model."""
    from ptp.benchmarks.speed import machine, plan
    from ptp.benchmarks.speed.benchmark import Turns, measure, sum_up, write
    from ptp.benchmarks.speed.tables import to_markdown
    from ptp.results import weights_sha256

    folders = list(bundles or ())
    if not folders and checkpoint is None:
        raise ConfigError("say what to measure", expected="BUNDLE… or --checkpoint")
    if folders and (dtype or instruction):
        raise ConfigError("--dtype and --instruction are of an export, and bundles were given", do="leave them out")
    if not 1 <= repeats <= plan.MAX_REPEATS:
        raise ConfigError("--repeats is out of range", got=repeats, expected=f"1 to {plan.MAX_REPEATS}")
    question = plan.Question(
        image=image,
        prompt=prompt,
        threads=threads or usable_cpus(),
        warmup=warmup,
        max_new_tokens=max_new_tokens,
        device=device,
    )
    keeps = None if keep is None else [parse_fraction(text, "--keep") for text in keep.split(",")]
    named, missing = plan.backends(backend, question.device)
    genai, missing_genai = plan.genai_entry(openvino_genai, question)
    models: dict[str, str] = {}
    with going_on(out), _progress() as (measured, step):
        entries = genai
        if checkpoint is not None:
            opened = _open(checkpoint)
            if not folders:
                options = (instruction or "attention", dtype or "fp32")
                folders = [_export(opened, checkpoint, *options, out / "bundles", step)]
            others, missing_peers = plan.peer_entries(opened.folder, peers, question, plan.precision_of(folders))
            entries = others + genai
            missing |= missing_peers
            models["checkpoint"] = weights_sha256(opened.folder)[:12]
        else:
            missing["transformers"] = "no --checkpoint was given"
        pruners, missing_pruner = _pruners(folders, out / "pruner")
        missing |= missing_genai | missing_pruner
        entries += plan.bundle_entries(folders, named, keeps, question, pruners)
        about = {
            "image": f"{image.name} sha256 {_sha256(image)[:12]}",
            "prompt": prompt,
            "threads": str(question.threads),
            "warmup": str(warmup),
            "tokens": str(max_new_tokens),
            "device": device,
        }
        facts, versions = machine.describe(question.device), machine.libraries()
        models |= {f"bundle {x.resolve().name}": _sha256(x / "ptp_config.json")[:12] for x in folders}
        turns = Turns(out, about | facts | versions | models, force=force)
        found = measure(entries, turns, repeats, measured)
    results = sum_up(
        found,
        settings=about | models | {"repeats": str(repeats)},
        machine=facts,
        libraries=versions,
        not_measured=missing,
    )
    text = results.model_dump_json(indent=1) + "\n"
    write(out / "results.json", text)
    write(out / "table.md", to_markdown(results))
    paths = [out / "table.md", out / "results.json"]
    if find_spec("matplotlib") is not None:
        from ptp.benchmarks.speed.plot import draw

        paths += draw(results, out)
    else:
        typer.echo('no plot: matplotlib is not installed; pip install "ptp-export[eval]"', err=True)
    shown = to_json(results.model_dump(mode="json")) if as_json else "\n".join([to_markdown(results), *map(str, paths)])
    typer.echo(shown)


def _open(checkpoint: str) -> "Checkpoint":
    try:
        from ptp.export.checkpoint import open_checkpoint
    except ModuleNotFoundError as error:
        raise ConfigError(
            "--checkpoint needs the extra `export`",
            got=f"no module {error.name!r}",
            do='pip install "ptp-export[export]", or name bundles',
        ) from error
    return open_checkpoint(checkpoint, None, weights=True)


def _export(
    opened: "Checkpoint", model: str, instruction: Instruction, precision: Precision, folder: Path, step: "Steps"
) -> Path:
    """Return a bundle of a checkpoint that serves every keep, exported if it is not there."""
    from ptp.benchmarks.evaluation.onnx_answerer import Bundles
    from ptp.benchmarks.evaluation.variants import PtpOptions

    found = Bundles(
        opened,
        model=model,
        revision=None,
        folder=folder,
        max_prompt=MAX_PROMPT,
        precision=precision,
        optimize="onnxruntime",
        progress=step,
    )
    return found.get(PtpOptions(instruction=instruction))


def _pruners(bundles: list[Path], folder: Path) -> tuple[dict[Path, Path], dict[str, str]]:
    """Return the folder of each bundle's pruner graph, cut out of it, and why there is none."""
    from ptp.bundle import open_bundle

    opened = {path: open_bundle(path) for path in bundles}
    if find_spec("onnx_ir") is None:
        return {}, {"the pruner's share": 'cutting it out of the graph needs pip install "ptp-export[export]"'}
    from ptp.benchmarks.speed.pruner_graph import write_pruner

    found = {}
    for path, bundle in opened.items():
        found[path] = folder / _sha256(path / "ptp_config.json")[:16]
        write_pruner(bundle, found[path])
    return found, {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _progress() -> "Iterator[tuple[Progress, Steps]]":
    """Yield what shows turns taken, and an export's steps, on stderr; silent in a log file."""
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    # once a second: a bar that is drawn takes CPU time from what is measured
    with bars.Progress(
        *columns, console=console, transient=True, refresh_per_second=1, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("starting", total=None)

        def measured(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        def step(what: str, done: int | None, total: int | None) -> None:
            progress.update(task, description=f"export: {what}", completed=done or 0, total=total)

        yield measured, step
