"""One export of a checkpoint that holds an evaluation."""

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from evaluations import write_evaluation

from ptp.cli import main


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The checkpoint's folder, the bundle's, and what the program printed."""

    checkpoint: Path
    bundle: Path
    printed: str


@pytest.fixture(scope="session")
def exported(tiny_checkpoint, tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("reported")
    checkpoint = Path(shutil.copytree(tiny_checkpoint("llama"), folder / "tiny"))
    write_evaluation(checkpoint)
    bundle = folder / "out"
    arguments = ["export", "--model", checkpoint, "--keep", "0.25", "--out", bundle, "--max-prompt", 64]
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 0
    return Exported(checkpoint=checkpoint, bundle=bundle, printed=printed.getvalue())
