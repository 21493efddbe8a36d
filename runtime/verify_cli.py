"""The verb `verify`."""

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ptp.bundle import open_bundle
from ptp.runtime.backends.registry import graph_loader
from ptp.runtime.cli import AsJson, Backend, Folder, Precision, Provider, Target, Threads, hash_progress

if TYPE_CHECKING:
    from ptp.runtime.verify import Check, Verification

COLUMNS = ("max diff", "mean diff", "cosine", "off by", "allowed")


def verify(
    bundle: Folder,
    backend: Backend = "onnxruntime",
    provider: Provider = None,
    threads: Threads = None,
    target: Target = None,
    precision: Precision = None,
    as_json: AsJson = False,
) -> None:
    """Rerun what was recorded at export, and compare; exit status 1 if anything is beyond its tolerance."""
    from ptp.runtime.verify import arithmetic_of, verify_bundle

    load_graph = graph_loader(backend, provider=provider, threads=threads, target=target, precision=precision)
    with hash_progress() as progress:
        opened = open_bundle(bundle, progress=progress)
    arithmetic = arithmetic_of(opened.manifest.model.precision, backend, provider=provider, precision=precision)
    verification = verify_bundle(opened, load_graph, arithmetic)
    if as_json:
        typer.echo(json.dumps({"backend": backend} | verification_json(verification)))
    else:
        Console(highlight=False).print(verification_table(verification))
    verification.require()
    if not as_json:
        typer.echo(verdict(verification, backend))


def verdict(verification: "Verification", backend: str) -> str:
    """Return the line that says what was verified."""
    return (
        f"verified: {backend} returns what transformers did at export, "
        f"on {len(verification.images)} image(s), within the tolerances of {verification.arithmetic}"
    )


def verification_json(verification: "Verification") -> dict[str, Any]:
    """Return a verification as a JSON object; a number that is not finite is null."""
    return {
        "arithmetic": verification.arithmetic,
        "images": [list(size) for size in verification.images],
        "verified": verification.verified,
        "outputs": [
            {name: _finite(value) for name, value in asdict(check).items()} | {"agrees": check.agrees}
            for check in verification.checks
        ],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verification_table(verification: "Verification") -> Table:
    """Return a verification as a table for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("output", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for check in verification.checks:
        table.add_row(Text(check.output), *_cells(check), style=None if check.agrees else "bold red")
    return table


def _cells(check: "Check") -> tuple[str, ...]:
    from ptp.runtime.comparison import Closeness

    if isinstance(check, Closeness):
        figures = (f"{x:.1e}" for x in (check.max_difference, check.mean_difference))
        return *figures, f"{check.cosine:.6f}", f"{check.relative:.1e}", f"{check.allowed:.0e}"
    return "", "", "", f"{check.total - check.equal} of {check.total}", f"{check.allowed}"
