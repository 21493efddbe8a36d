"""Write a bundle atomically: into a hidden sibling, then renamed into place."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ptp.bundle.hashes import sha256_of
from ptp.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from ptp.errors import ConfigError, PtpError, interruption


class Check(Protocol):
    """Says whether a folder may be written."""

    def __call__(self, folder: Path, *, force: bool) -> None:
        """Refuse it with an error, or return."""


def check_destination(folder: Path, *, force: bool) -> None:
    """Refuse a destination that exists, or with `force` one that holds anything but a bundle.

    Raises:
        ConfigError: the folder exists and is not one that may be replaced, or its parent cannot be written.
    """
    # replacing a bundle writes into its parent folder too
    parent = next(parent for parent in folder.absolute().parents if parent.exists() or parent.is_symlink())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be made", got=f"{parent}", expected="a folder that may be written")
    if not folder.exists() and not folder.is_symlink():
        return
    if not force:
        raise ConfigError(f"{folder} exists", do="choose another --out or replace the bundle with --force")
    if not folder.is_dir() or folder.is_symlink():
        raise ConfigError(f"{folder} is not a folder", do="choose another --out")
    if any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise ConfigError(
            f"{folder} is not a bundle, so --force does not replace it",
            expected=f"a folder with {MANIFEST_NAME}",
            do="choose another --out",
        )


@contextmanager
def staged(folder: Path, *, force: bool, check: Check = check_destination, resume: str | None = None) -> Iterator[Path]:
    """Yield a hidden sibling of `folder`; on success it takes the folder's place, on failure it vanishes.

    What a process left that was killed is put right first: a folder that it had moved aside comes back if its place is
    empty, what it had begun to write goes.

    Args:
        folder: where it goes.
        force: replace what is there.
        check: whether that may be; asked before and after.
        resume: everything that decides what is written, if a stopped attempt is to go on: after anything but an error
            of this package the sibling stays, and the next attempt with the same words finds it as it was left.

    Raises:
        ConfigError: `folder` may not be written, or another process is writing it.
    """
    folder = folder.absolute()
    check(folder, force=force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / f".{folder.name}.lock"):
        _put_right(folder)
        check(folder, force=force)
        mark = "" if resume is None else f".{hashlib.sha256(resume.encode()).hexdigest()[:16]}"
        stage = folder.parent / f".{folder.name}{mark}.partial"
        stage.mkdir(exist_ok=resume is not None)
        keep = False
        try:
            yield stage
            check(folder, force=force)
            _replace(folder, stage)
        except BaseException as error:
            if isinstance(error, PtpError) and interruption(error) is None:
                raise
            # an interruption, a full disk
            keep = resume is not None
            kept = f"{stage} holds what was written, and the same command goes on from there"
            error.add_note(kept if keep else "nothing was written")
            raise
        finally:
            if not keep:
                shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold a place against other processes; the system lets go of it however this one ends."""
    import fcntl  # not on Windows, where no export is as large

    while True:
        with file.open("w") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(opened.fileno()).st_ino != file.stat().st_ino:
                    continue  # of a process that ended just now
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigError(
                    "another process is writing the same", got=file, do="wait for it, or stop it"
                ) from error
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def _put_right(folder: Path) -> None:
    """Bring back or remove what a process left that was killed; nobody else is writing here."""
    replaced, stage = _replaced(folder), folder.parent / f".{folder.name}.partial"
    if replaced.exists():
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(folder)
    shutil.rmtree(stage, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    """Return where a folder is while another one takes its place."""
    return folder.parent / f".{folder.name}.replaced"


def moved_aside(folder: Path) -> Path | None:
    """Return where a process that was killed has left what stood at a place that is empty; None where nothing is."""
    with contextlib.suppress(OSError, ValueError):  # a name that no folder has
        replaced = _replaced(folder.absolute())
        return replaced if replaced.is_dir() and not folder.exists() else None
    return None


def _replace(folder: Path, stage: Path) -> None:
    replaced = _replaced(folder)
    if folder.exists():
        folder.rename(replaced)
    try:
        stage.rename(folder)
    except BaseException:  # an interruption too
        if replaced.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of a file, to be written; on success it takes the file's place, on failure it vanishes."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Return size and SHA-256 of every file below a folder but its manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): file_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }


def file_entry(path: Path) -> FileEntry:
    """Return size and SHA-256 of a file."""
    return FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest to disk, flushed, as the last file of a bundle."""
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
