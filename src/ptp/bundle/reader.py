"""Open a bundle: validate its manifest, then prove that every file is the one that was exported."""

from dataclasses import dataclass
from pathlib import Path

from ptp.bundle.contract import GRAPH_FOLDER
from ptp.bundle.hashes import HashCache, Progress
from ptp.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from ptp.bundle.writer import moved_aside
from ptp.errors import BundleError, IntegrityError

MAX_MANIFEST_BYTES = 1 << 24
MAX_SMALL_FILE_BYTES = 1 << 26
"""Bound on every file that is read whole: all but the graphs, their weights and the parity vectors."""

MAX_VECTORS_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle on disk: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return the path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"the bundle {self.folder} has no file {name!r}", do="export it again")
        return self.folder / name


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a bundle's manifest, without looking at its other files.

    Raises:
        BundleError: the folder is no bundle.
        SchemaError: the manifest is malformed or of a newer schema.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        aside = moved_aside(folder)
        raise BundleError(
            f"{folder} is not a bundle",
            expected=f"a folder with {MANIFEST_NAME}",
            do=f"{aside} holds the one that was here; move it back or export again"
            if aside
            else "make one with ptp-export",
        )
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is too large", got=f"{size} bytes", expected=f"at most {MAX_MANIFEST_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8 text", got=error, do="export the bundle again") from error
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
    for name, entry in manifest.files.items():
        bound = MAX_VECTORS_BYTES if name == manifest.vectors else MAX_SMALL_FILE_BYTES
        if entry.bytes > bound and not name.startswith(GRAPH_FOLDER):
            raise IntegrityError(
                f"{folder / name} is too large", got=f"{entry.bytes} bytes", expected=f"at most {bound}"
            )
        verify_file(folder / name, entry, root, do="export the bundle again", hashes=hashes, progress=progress)
    return Bundle(folder=folder, manifest=manifest)


def verify_file(
    path: Path, entry: FileEntry, root: Path, *, do: str, hashes: HashCache, progress: Progress | None = None
) -> None:
    """Refuse a file that is not what was written.

    Args:
        path: the file.
        entry: its size and SHA-256.
        root: the resolved folder that it must not lead out of.
        do: what repairs it.
        hashes: where hashes are remembered.
        progress: called while it is read.

    Raises:
        IntegrityError: it is missing, a link out of the folder, or of another size or hash.
    """
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", do=do)
    if not path.resolve().is_relative_to(root):
        raise IntegrityError(f"{path} is a link out of the bundle", do=do)
    size = path.stat().st_size
    if size != entry.bytes:
        raise IntegrityError(f"{path} was altered", got=f"{size} bytes", expected=entry.bytes, do=do)
    digest = hashes.sha256_of(path, progress)
    if digest != entry.sha256:
        raise IntegrityError(
            f"{path} was altered", got=f"SHA-256 {digest[:12]}…", expected=f"{entry.sha256[:12]}…", do=do
        )


def _refuse_unlisted_weights(folder: Path, manifest: Manifest) -> None:
    """A graph may name any file beside it as its weights, so there must be none that was not verified."""
    for path in sorted((folder / GRAPH_FOLDER).rglob("*")):
        name = path.relative_to(folder).as_posix()
        # a linked folder is not looked into, and would lead out of what was verified
        if (path.is_symlink() or not path.is_dir()) and name not in manifest.files:
            raise IntegrityError(f"{path} is not a file of this bundle", do="remove it")
