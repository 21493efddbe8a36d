"""SHA-256 of files, remembered by size, times and inode so that a bundle of many gigabytes is read once."""

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ptp.errors import IntegrityError

Progress = Callable[[str, int, int], None]
"""Called with a file's name, bytes done and bytes in all."""

FileState = tuple[int, int, int, int]
"""Size, modification and change time in ns, inode. No program can set the change time."""

CHUNK = 1 << 22
MAX_CACHE_BYTES = 1 << 24


def state_of(path: Path) -> FileState | None:
    """Return the state of a file; None where there is none that can be looked at."""
    try:
        return _state(path.stat())
    except (OSError, ValueError):
        return None


def open_file(path: Path, *, do: str | None = None) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device is refused and never waited for.

    Raises:
        IntegrityError: it is missing, no file, or cannot be read.
    """
    try:
        # without O_NONBLOCK a pipe without a writer would block here
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError(f"{path} is missing", do=do) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, do) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise IntegrityError(f"{path} is not a file", do=do)
    return os.fdopen(handle, "rb")


def read_file(path: Path, limit: int, *, do: str | None = None) -> bytes:
    """Return a file's bytes.

    Raises:
        IntegrityError: it is missing, no file, larger than `limit`, or cannot be read.
    """
    with open_file(path, do=do) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise IntegrityError(f"{path} is too large", got=f"{size} bytes", expected=f"at most {limit}", do=do)
        try:
            return file.read(size)
        except OSError as error:
            raise _unreadable(path, error, do) from error


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        IntegrityError: it cannot be read.
    """
    with open_file(path) as file:
        return _digest(file, path, progress, None)


def cache_folder() -> Path | None:
    """Return the user's own folder for what only saves work, `$XDG_CACHE_HOME/ptp-export`; None without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptp-export"
    except RuntimeError:
        return None  # no home folder; a shared one will not do, another user could write hashes into it


class HashCache:
    """SHA-256 of files that did not change since they were last read.

    A file counts as unchanged while its `FileState` is the same. The cache lives in `$XDG_CACHE_HOME/ptp-export` and
    only ever saves work: a cache that cannot be read or written costs a second reading. It is trusted as far as its
    owner is: who writes hashes into it decides what counts as verified.
    """

    def __init__(self, file: Path | None = None) -> None:
        folder = cache_folder()
        self._file = file or (folder / "sha256.json" if folder else None)
        self._entries = self._read()
        self._new: dict[str, list[object]] = {}

    def sha256_of(
        self, path: Path, progress: Progress | None = None, *, do: str | None = None
    ) -> tuple[str, FileState]:
        """Return the SHA-256 of a file, read only if it changed, and the state that it was read in.

        Raises:
            IntegrityError: it cannot be read, or changes while it is.
        """
        with open_file(path, do=do) as file:
            state = _state(os.fstat(file.fileno()))
            key = os.path.realpath(path)
            known = self._entries.get(key)
            if isinstance(known, list) and known[:-1] == list(state) and isinstance(known[-1], str):
                return known[-1], state
            digest = _digest(file, path, progress, do)
            if _state(os.fstat(file.fileno())) != state:
                raise IntegrityError(f"{path} changed while it was read", do="try again")
        with contextlib.suppress(UnicodeEncodeError):  # JSON holds no other names
            key.encode()
            self._new[key] = [*state, digest]
        return digest, state

    def save(self) -> None:
        """Write what was read since the cache was opened, beside what others have written; once for many files."""
        if not self._file or not self._new:
            return
        self._entries |= self._new
        text = json.dumps(self._read() | self._new)
        if len(text) > MAX_CACHE_BYTES:
            text = json.dumps(self._new)  # begin anew: most of it is of bundles that are gone
        self._new = {}
        name = None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._file.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self._file)
        except OSError:
            if name:
                with contextlib.suppress(OSError):
                    Path(name).unlink()

    def _read(self) -> dict[str, object]:
        if not self._file:
            return {}
        try:
            entries = json.loads(read_file(self._file, MAX_CACHE_BYTES))
        except (IntegrityError, ValueError, RecursionError):
            return {}  # none yet, or one that was spoiled
        return entries if isinstance(entries, dict) else {}


def _state(found: os.stat_result) -> FileState:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _digest(file: BinaryIO, path: Path, progress: Progress | None, do: str | None) -> str:
    digest, done, total = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
    while done < total:
        try:
            chunk = file.read(min(CHUNK, total - done))
        except OSError as error:
            raise _unreadable(path, error, do) from error
        if not chunk:
            break
        digest.update(chunk)
        done += len(chunk)
        if progress:
            progress(path.name, done, total)
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception, do: str | None) -> IntegrityError:
    return IntegrityError(f"{path} cannot be read", got=getattr(error, "strerror", None) or error, do=do)
