"""The command line: one program, `ptp`, with verbs; `ptp-export` is `ptp export`.

This module and the verbs' modules import no torch, transformers or onnx; a verb that needs them imports them when it
runs.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import ptp
from ptp import console
from ptp.benchmarks.evaluation.cli import evaluate
from ptp.benchmarks.speed.cli import bench
from ptp.engines.cli import build
from ptp.errors import PtpError, cause, interruption
from ptp.export.cli import export
from ptp.runtime.cli import inspect, run
from ptp.runtime.verify_cli import verify

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.command()(export)
app.command()(build)
app.command()(run)
app.command()(inspect)
app.command()(verify)
app.command("eval")(evaluate)
app.command()(bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ptp-export {ptp.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Export vision-language models with Pyramid Token Pruning inside the graph, and run them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `ptp`; an error is one line on stderr and exit status 1, a usage error exit status 2."""
    console.widen_streams()
    try:
        try:
            _run(arguments)
        finally:
            sys.stdout.flush()  # a full disk is seen here and not at the interpreter's exit
    except PtpError as error:
        _fail(_noted(str(error), error))
    except console.Terminated as error:
        _fail(_noted("ended by SIGTERM", error), status=143)
    except KeyboardInterrupt as error:
        _fail(_noted("interrupted", error), status=130)
    except BrokenPipeError:  # an OSError, so before it
        # the reader of our output is gone: no more output, and no traceback at interpreter exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written, …
        _fail(_noted(str(PtpError(error.strerror or str(error), got=error.filename)), error))
    except MemoryError as error:
        _fail(_noted(str(PtpError("there is not enough memory", got=str(error) or None)), error))
    except Exception as error:
        if os.environ.get(console.TRACEBACK):
            raise
        problem = PtpError(
            "internal error", got=cause(error), do=f"please report it, with what {console.TRACEBACK}=1 shows"
        )
        _fail(_noted(str(problem), error))


def _run(arguments: Sequence[str] | None) -> None:
    try:
        app(args=None if arguments is None else list(arguments), prog_name="ptp")
    except (SystemExit, Exception) as ended:
        # typer makes an exit status of an interruption, and a library that is being loaded an ImportError
        origin = interruption(ended)
        if origin is None:
            raise
        for note in getattr(ended, "__notes__", ()):  # such as how to go on
            origin.add_note(note)
        raise origin from None


def _noted(message: str, error: BaseException) -> str:
    """Return a message with what was noted on the error's way, such as how to go on."""
    return "; ".join([message, *getattr(error, "__notes__", ())])


def _fail(message: str, status: int = 1) -> None:
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(status)
