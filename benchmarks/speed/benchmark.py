"""Measure every side at every keep in turns, and sum up."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ptp.benchmarks.speed.bars import bars
from ptp.benchmarks.speed.results import Benchmark, summed_up
from ptp.benchmarks.speed.turn import Job, Turn, take_turn
from ptp.bundle.writer import replacing
from ptp.errors import ConfigError

Progress = Callable[[str, int, int], None]
"""Called with what is being measured, how many turns are done, and of how many."""

IDENTITY, TURNS = "settings.json", "turns"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One side at one keep.

    Attributes:
        side: name in tables.
        keep: fraction of visual tokens kept; 1 for sides that prune nothing.
        precision: of weights and products.
        bundle: name of the bundle's folder; None for others.
        job: what its process does.
    """

    side: str
    keep: Fraction
    precision: str
    bundle: str | None = None
    job: Job

    @property
    def name(self) -> str:
        """For progress, and for files once it is reduced to letters, digits and points."""
        return f"{self.side} at keep {float(self.keep):g}"


class Turns:
    """The turns of a benchmark on disk, so that one that was stopped goes on where it was.

    Args:
        folder: the benchmark's; made if it is not there.
        identity: what figures depend on beside the side: files, options, machine, versions.
        force: drop the turns of another benchmark.

    Raises:
        ConfigError: the folder holds another benchmark, or something else.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], *, force: bool = False) -> None:
        path = folder / IDENTITY
        strange = {entry.name for entry in folder.iterdir()} - {"bundles", "pruner"} if folder.is_dir() else set()
        if (folder.exists() and not folder.is_dir()) or (strange and not path.is_file()):
            raise ConfigError(f"{folder} is no benchmark", expected="a new folder", do="choose another --out")
        self._folder = folder / TURNS
        self._folder.mkdir(parents=True, exist_ok=True)
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else dict(identity)
        differ = [name for name in {**identity, **found} if identity.get(name) != found.get(name)]
        if differ and not force:
            raise ConfigError(
                f"{folder} holds another benchmark",
                got=", ".join(f"{name} {found.get(name)}" for name in differ),
                expected=", ".join(f"{name} {identity.get(name)}" for name in differ),
                do="choose another --out, or --force to drop its turns",
            )
        if force:
            for turn in self._folder.glob("*.json"):
                turn.unlink()
        write(path, json.dumps(dict(identity), indent=1) + "\n")

    def get(self, entry: Entry, number: int) -> Turn | None:
        """Return a turn, or None if it was not taken."""
        path = self._path(entry, number)
        return Turn.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None

    def add(self, entry: Entry, number: int, turn: Turn) -> None:
        """Write a turn to disk."""
        write(self._path(entry, number), turn.to_json() + "\n")

    def _path(self, entry: Entry, number: int) -> Path:
        return self._folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', entry.name)}-{number}.json"


def measure(
    entries: Sequence[Entry],
    turns: Turns,
    repeats: int,
    progress: Progress = lambda *_: None,
    take: Callable[[Job], Turn] = take_turn,
) -> dict[Entry, list[Turn]]:
    """Take the turns that are missing: every entry once, then every entry again.

    Args:
        entries: sides and keeps.
        turns: where turns are, and go.
        repeats: turns of each entry.
        progress: told how far it is.
        take: does a job in a process of its own.

    Raises:
        BackendError: a side failed.
    """
    found: dict[Entry, list[Turn]] = {entry: [] for entry in entries}
    done, total = 0, repeats * len(entries)
    for number in range(repeats):
        for entry in entries:
            progress(f"round {number + 1} of {repeats}: {entry.name}", done, total)
            turn = turns.get(entry, number)
            if turn is None:
                turn = take(entry.job)
                turns.add(entry, number, turn)
            found[entry].append(turn)
            done += 1
    progress("done", done, total)
    return found


def sum_up(
    found: Mapping[Entry, Sequence[Turn]],
    *,
    settings: Mapping[str, str],
    machine: Mapping[str, str],
    libraries: Mapping[str, str],
    not_measured: Mapping[str, str],
) -> Benchmark:
    """Return the whole benchmark with its bars."""
    cases = tuple(
        summed_up(
            turns,
            side=entry.side,
            kind=entry.job.kind,
            backend=entry.job.backend,
            bundle=entry.bundle,
            keep=float(entry.keep),
            precision=entry.precision,
            new_tokens=entry.job.max_new_tokens,
        )
        for entry, turns in found.items()
    )
    return Benchmark(
        settings=dict(settings),
        machine=dict(machine),
        libraries=dict(libraries),
        not_measured=dict(not_measured),
        cases=cases,
        bars=bars(cases),
    )


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
