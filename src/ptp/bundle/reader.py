"""Open a bundle: validate its manifest, then prove that every file is the one that was exported."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ptp.bundle.contract import GRAPH_FOLDER
from ptp.bundle.hashes import FileState, HashCache, Progress, open_file, read_file, state_of
from ptp.bundle.manifest import MANIFEST_NAME, Manifest
from ptp.bundle.schema import FileEntry
from ptp.bundle.writer import moved_aside
from ptp.errors import BundleError, IntegrityError

AGAIN = "export the bundle again"
MAX_MANIFEST_BYTES = 1 << 24
MAX_SMALL_FILE_BYTES = 1 << 26
"""Bound on every file that is read whole: all but the graphs, their weights and the parity vectors."""

MAX_VECTORS_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle on disk: its folder and its manifest."""

    folder: Path
    manifest: Manifest
    verified: Mapping[Path, FileState] = field(default_factory=dict, repr=False)

    def path(self, name: str) -> Path:
        """Return the path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"the bundle {self.folder} has no file {name!r}", do="export it again")
        return self.folder / name

    def read(self, name: str) -> bytes:
        """Return the bytes of a small file, which are those that the manifest lists.

        Raises:
            BundleError: the manifest lists no such file.
            IntegrityError: it is missing, was altered since the bundle was opened, or cannot be read.
        """
        path, entry = self.path(name), self.manifest.files[name]
        data = read_file(path, max(MAX_SMALL_FILE_BYTES, MAX_VECTORS_BYTES), do=AGAIN)
        _compare_size(path, len(data), entry, AGAIN)
        _compare_hash(path, hashlib.sha256(data).hexdigest(), entry, AGAIN)
        return data

    def require_unchanged(self) -> None:
        """Refuse graphs and weights that changed since they were verified; to be called after a library read them.

        A library opens them by path. With this, what it read is what was verified, but for a write into a file that it
        maps while it runs.

        Raises:
            IntegrityError: a file was replaced or written to.
        """
        for path, state in self.verified.items():
            require_unchanged(path, state)


def require_unchanged(path: Path, state: FileState) -> None:
    """Refuse a file that changed since it was verified.

    Raises:
        IntegrityError: its size, times or inode are others.
    """
    if state_of(path) != state:
        raise IntegrityError(f"{path} changed after it was verified", do="start again")


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a bundle's manifest, without looking at its other files.

    Raises:
        BundleError: the folder is no bundle.
        SchemaError: the manifest is malformed or of a newer schema.
    """
    path = folder / MANIFEST_NAME
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # a name that no folder has
        is_there = False
    if not is_there:
        aside = moved_aside(folder)
        raise BundleError(
            f"{folder} is not a bundle",
            expected=f"a folder with {MANIFEST_NAME}",
            do=f"{aside} holds the one that was here; move it back or export again"
            if aside
            else "make one with ptp-export",
        )
    try:
        text = read_file(path, MAX_MANIFEST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8 text", got=error, do=AGAIN) from error
    return Manifest.from_json(text)


def open_bundle(folder: str | Path, *, hashes: HashCache | None = None, progress: Progress | None = None) -> Bundle:
    """Open a bundle and verify the size and SHA-256 of every file it lists.

    Args:
        folder: the bundle's folder.
        hashes: where hashes are remembered between runs; the user's cache by default.
        progress: called while files are read.

    Raises:
        BundleError: the folder is no bundle.
        SchemaError: the manifest is malformed or of a newer schema.
        IntegrityError: a file is missing, a link out of the folder, or differs from the manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    hashes = hashes or HashCache()
    root = folder.resolve()
    _refuse_unlisted_weights(folder, manifest)
    verified = {}
    try:
        for name, entry in manifest.files.items():
            path, bound = folder / name, MAX_VECTORS_BYTES if name == manifest.vectors else MAX_SMALL_FILE_BYTES
            is_graph = name.startswith(GRAPH_FOLDER)
            if entry.bytes > bound and not is_graph:
                raise IntegrityError(f"{path} is too large", got=f"{entry.bytes} bytes", expected=f"at most {bound}")
            state = verify_file(path, entry, root, do=AGAIN, hashes=hashes, progress=progress)
            if is_graph:
                verified[path] = state
    finally:
        hashes.save()
    return Bundle(folder=folder, manifest=manifest, verified=verified)


def verify_file(
    path: Path, entry: FileEntry, root: Path, *, do: str, hashes: HashCache, progress: Progress | None = None
) -> FileState:
    """Refuse a file that is not what was written, and return its state.

    Args:
        path: the file.
        entry: its size and SHA-256.
        root: the resolved folder that it must not lead out of.
        do: what repairs it.
        hashes: where hashes are remembered.
        progress: called while it is read.

    Raises:
        IntegrityError: it is missing, no file, a link out of the folder, of another size or hash, or cannot be read.
    """
    with open_file(path, do=do) as file:
        size = os.fstat(file.fileno()).st_size
    if not path.resolve().is_relative_to(root):
        raise IntegrityError(f"{path} is a link out of the bundle", do=do)
    _compare_size(path, size, entry, do)
    digest, state = hashes.sha256_of(path, progress, do=do)
    _compare_hash(path, digest, entry, do)
    return state


def _compare_size(path: Path, size: int, entry: FileEntry, do: str) -> None:
    if size != entry.bytes:
        raise IntegrityError(f"{path} was altered", got=f"{size} bytes", expected=entry.bytes, do=do)


def _compare_hash(path: Path, digest: str, entry: FileEntry, do: str) -> None:
    if digest != entry.sha256:
        raise IntegrityError(
            f"{path} was altered", got=f"SHA-256 {digest[:12]}…", expected=f"{entry.sha256[:12]}…", do=do
        )


def _refuse_unlisted_weights(folder: Path, manifest: Manifest) -> None:
    """A graph may name any file beside it as its weights, so there must be none that was not verified.

    The manifest bounds the walk: it ends at the first file that is not listed and enters no folder that holds none.
    """
    known = {str(parent) for name in manifest.files for parent in PurePosixPath(name).parents}
    folders = [GRAPH_FOLDER.rstrip("/")]
    while folders:
        name = folders.pop()
        if (folder / name).is_symlink():
            raise IntegrityError(f"{folder / name} is a link", expected="a folder", do=AGAIN)
        try:
            with os.scandir(folder / name) as entries:
                for entry in entries:
                    # a linked folder is not looked into, and would lead out of what was verified
                    child, is_folder = f"{name}/{entry.name}", entry.is_dir(follow_symlinks=False)
                    if child not in (known if is_folder else manifest.files):
                        raise IntegrityError(f"{folder / child} is not a file of this bundle", do="remove it")
                    folders += [child] * is_folder
        except FileNotFoundError:
            return  # the graphs are missing: verifying them says so
        except OSError as error:
            raise IntegrityError(f"{folder / name} cannot be read", got=error.strerror, do=AGAIN) from error
