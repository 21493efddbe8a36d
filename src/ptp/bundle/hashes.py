"""SHA-256 of files, remembered by size, times and inode so that a bundle of many gigabytes is read once."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str, int, int], None]
"""Called with a file's name, bytes done and bytes in all."""

CHUNK = 1 << 22


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(path.name, done, total)
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Return the user's own folder for what only saves work, `$XDG_CACHE_HOME/ptp-export`; None without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptp-export"
    except RuntimeError:
        return None  # no home folder; a shared one will not do, another user could write hashes into it


class HashCache:
    """SHA-256 of files that did not change since they were last read.

    A file counts as unchanged while its size, modification time, change time and inode are the same; the change time
    cannot be set by a program. The cache lives in `$XDG_CACHE_HOME/ptp-export` and only ever saves work: a cache that
    cannot be read or written costs a second reading.
    """

    def __init__(self, file: Path | None = None) -> None:
        folder = cache_folder()
        self._file = file or (folder / "sha256.json" if folder else None)
        self._entries: dict[str, list[object]] = {}
        if not self._file:
            return
        with contextlib.suppress(OSError, ValueError):
            entries = json.loads(self._file.read_text(encoding="utf-8"))
            self._entries = entries if isinstance(entries, dict) else {}

    def sha256_of(self, path: Path, progress: Progress | None = None) -> str:
        """Return the SHA-256 of a file, read only if it changed."""
        stat = path.stat()
        state: list[object] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        key = str(path.resolve())
        known = self._entries.get(key)
        if isinstance(known, list) and known[:-1] == state:
            return str(known[-1])
        digest = sha256_of(path, progress)
        self._entries[key] = [*state, digest]
        self._save()
        return digest

    def _save(self) -> None:
        if not self._file:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._file.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self._entries, file)
            Path(name).replace(self._file)
