"""The verb `build`."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ptp.bundle import Bundle, open_bundle, read_manifest
from ptp.bundle.engine import KINDS, EngineBackend
from ptp.bundle.summary import human_bytes
from ptp.console import shown
from ptp.cuda import device_problem, find_device
from ptp.engines.profiles import default_max_context, llm_profiles
from ptp.engines.targets import TARGETS, Target, target_of_device, targets_of
from ptp.errors import ConfigError
from ptp.runtime.cli import AsJson, Folder, hash_progress

if TYPE_CHECKING:
    from ptp.engines.build import BuiltEngine
    from ptp.runtime.verify import Verification

Opt = typer.Option

SHOW_AFTER = 2.0
"""Seconds after which a build shows that it is still at work."""


def build(
    bundle: Folder,
    backend: Annotated[
        Literal["tensorrt-rtx", "tensorrt", "openvino", "onnxruntime"], Opt(help="what is to run the bundle")
    ],
    target: Annotated[
        str | None, Opt(metavar="NAME,…", help="what to build for: sm86,sm89 or orin-nano, … (default: this GPU)")
    ] = None,
    max_context: Annotated[
        int | None, Opt(help="tokens the cache has room for (default: longest prompt, visual tokens and 256)")
    ] = None,
    dry_run: Annotated[bool, Opt("--dry-run", help="print the memory that it would need; build nothing")] = False,
    force: Annotated[bool, Opt("--force", help="replace engines that are there")] = False,
    weight_streaming: Annotated[
        bool, Opt("--weight-streaming", help="engines that run with less GPU memory than their weights, slower")
    ] = False,
    version_compatible: Annotated[
        bool, Opt("--version-compatible", help="tensorrt: engines that later releases load, for your own loader")
    ] = False,
    hardware_compatible: Annotated[
        bool, Opt("--hardware-compatible", help="tensorrt: engines for other boards of the same compute capability")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build the engines of a bundle: RTX cards' on any machine, a Jetson's on the Jetson."""
    from ptp.engines.build import BuildOptions, build_engines

    options = BuildOptions(
        weight_streaming=weight_streaming,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    if backend == "openvino" or backend == "onnxruntime":
        if target or max_context or options != BuildOptions():
            raise ConfigError(f"{backend} runs the graphs as they are, so there is nothing to choose for engines")
        _say_that_nothing_is_built(bundle, backend, as_json=as_json)
        return
    # whatever can be refused is refused before gigabytes are read
    targets = _chosen(target, backend)
    manifest = read_manifest(bundle)
    context = default_max_context(manifest) if max_context is None else max_context
    llm_profiles(manifest, context)
    with hash_progress() as progress:
        opened = open_bundle(bundle, progress=progress)
    if dry_run:
        _print_estimates(opened, targets, context, as_json=as_json)
        return
    console = Console(highlight=False, soft_wrap=True)
    if manifest.model.precision == "fp32" and any(x.memory_bytes for x in targets) and not as_json:
        console.print("this bundle is fp32; one of --dtype fp16 needs half the memory, which a board shares")
    with _progress() as say:
        engines = build_engines(
            opened, backend, targets, max_context=max_context, options=options, force=force, progress=say
        )
    if not as_json:
        for engine in engines:
            console.print(shown(_line(engine)), markup=False)
    verified = _verify(opened, backend, targets)
    if as_json:
        typer.echo(json.dumps(_as_json(engines, verified)))
    for name, verification in verified.items():
        verification.require()
        if not as_json:
            console.print(f"{name}: verified against what transformers did at export")
    if not as_json and (left := [x.name for x in targets if x.name not in verified]):
        console.print(f"not verified, since no GPU here runs it: {', '.join(left)}")


def _chosen(names: str | None, backend: EngineBackend) -> tuple[Target, ...]:
    if names is not None:
        return targets_of(names, backend)
    device = find_device()
    if device is None:
        raise ConfigError(
            "there is no CUDA device here to build for",
            got=device_problem(),
            expected=", ".join(name for name, target in TARGETS.items() if target.backend == backend),
            do="choose with --target",
        )
    return (target_of_device(device.compute_capability, device.memory_bytes, backend),)


def _say_that_nothing_is_built(bundle: Folder, backend: str, *, as_json: bool) -> None:
    read_manifest(bundle)
    text = f"{backend} runs the graphs as they are, so nothing was built; ptp run {bundle} --backend {backend} …"
    typer.echo(json.dumps({"engines": [], "note": text}) if as_json else text)


def _print_estimates(bundle: Bundle, targets: Sequence[Target], max_context: int, *, as_json: bool) -> None:
    from ptp.engines.memory import estimate, run_total, usable_bytes

    console, found = Console(highlight=False, soft_wrap=True), []
    for target in targets:
        estimates = {kind: estimate(bundle, target, kind, max_context) for kind in KINDS}
        peak = max(x.build_bytes for x in estimates.values())
        total, usable = run_total(estimates.values()), usable_bytes(target)
        fits = None if usable is None else max(peak, total) <= usable
        found.append(
            {
                "target": target.name,
                "max_context": max_context,
                "engines": {kind: vars(x) for kind, x in estimates.items()},
                "build_bytes": peak,
                "run_bytes": total,
                "usable_bytes": usable,
                "fits": fits,
            }
        )
        if as_json:
            continue
        console.print(f"{target.name}: {target.software}", markup=False)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("engine", "weights", "activations", "cache", "build", "run"):
            table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
        for kind, x in estimates.items():
            sizes = (x.weights, x.activations, x.cache, x.build_bytes, x.run_bytes)
            table.add_row(kind, *(human_bytes(size) for size in sizes))
        console.print(table)
        verdict = "" if usable is None else f"; {human_bytes(usable)} are left to it: {'fits' if fits else 'too much'}"
        console.print(
            f"estimated at {max_context} tokens: build {human_bytes(peak)}, run {human_bytes(total)}{verdict}"
        )
    if as_json:
        typer.echo(json.dumps({"estimates": found}))


def _line(engine: "BuiltEngine") -> str:
    config = engine.config
    return (
        f"{engine.folder / config.file_name}  {human_bytes(config.engine.bytes)} in {config.seconds:.1f} s; the "
        f"builder took {human_bytes(config.peak_bytes)} (estimated {human_bytes(config.estimated_bytes)})"
    )


def _verify(bundle: Bundle, backend: EngineBackend, targets: Sequence[Target]) -> "dict[str, Verification]":
    """Run the parity vectors on each target's engines that the GPU of this machine runs."""
    from ptp.runtime.backends.registry import graph_loader
    from ptp.runtime.verify import arithmetic_of, verify_bundle

    device = find_device()
    return {
        target.name: verify_bundle(
            bundle,
            graph_loader(backend, target=target.name),
            arithmetic_of(bundle.manifest.model.precision, backend),
        )
        for target in targets
        if device is not None and device.compute_capability == target.compute_capability
    }


def _as_json(engines: "Sequence[BuiltEngine]", verified: "dict[str, Verification]") -> dict[str, Any]:
    from ptp.runtime.verify_cli import verification_json

    return {
        "engines": [{"folder": str(x.folder), "config": json.loads(x.config.to_json())} for x in engines],
        "verified": {name: verification_json(x) for name, x in verified.items()},
    }


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield a callback that shows each step and its time on stderr once it takes longer than a moment."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    # a log file gets nothing: Rich would write an empty line into it
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task("starting", total=None)
    timer = threading.Timer(SHOW_AFTER, progress.start)
    timer.daemon = True
    timer.start()

    def say(what: str) -> None:
        progress.reset(task, description=what)

    try:
        yield say
    finally:
        timer.cancel()
        timer.join()
        if progress.live.is_started:  # else this would print an empty line
            progress.stop()
