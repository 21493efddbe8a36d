"""The files of a checkpoint, which a stranger may have made: which of them are read, and what they must be."""

import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from ptp.errors import CheckpointError

MAX_SMALL_BYTES = 1 << 26
"""Of each file beside the weights; the largest real ones are tokenizers of some 30 MB."""

MAX_CONFIG_BYTES = 1 << 22
"""Of each configuration: real ones have kilobytes, and an index of weights a few hundred."""

MAX_DEPTH = 32
"""Of lists and objects in a configuration; real ones have 5."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

COPIED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
)
"""What a bundle has copies of, for other programs."""

SMALL_FILES = (
    *COPIED,
    "added_tokens.json",
    "tokenizer.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""What transformers reads of a checkpoint beside its weights, as far as it is there."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"


def check_small_files(folder: Path) -> None:
    """Refuse a checkpoint of which a small file is none that may be read.

    Raises:
        CheckpointError: one is no file, a link out of the checkpoint, too large, nested too deeply, or a pointer of Git
            LFS.
    """
    for name in SMALL_FILES:
        if os.path.lexists(folder / name):
            is_config = name not in TOKENIZER_FILES
            path = checked_file(folder, name, most=MAX_CONFIG_BYTES if is_config else MAX_SMALL_BYTES)
            if is_config and name.endswith(".json"):
                read_json(path)


@contextmanager
def small_files(folder: Path) -> Iterator[Path]:
    """Yield a folder that holds copies of a checkpoint's small files and nothing else, so that nothing else is read.

    Code that a checkpoint brings along is not there, nor is a file that only another version of transformers looks at.

    Raises:
        CheckpointError: see `check_small_files`.
    """
    check_small_files(folder)
    with TemporaryDirectory(prefix="ptp-") as copies:
        for name in SMALL_FILES:
            if (folder / name).exists():
                shutil.copyfile(checked_file(folder, name), Path(copies) / name)
        yield Path(copies)


def checked_file(folder: Path, name: str, *, most: int | None = None) -> Path:
    """Return the path of a file that a checkpoint may be read from.

    Args:
        folder: the checkpoint.
        name: of the file.
        most: bytes that it may have.

    Raises:
        CheckpointError: it is missing, no file, a link out of the checkpoint, too large, or a pointer of Git LFS.
    """
    path = folder / name
    try:
        found = path.stat()
    except FileNotFoundError as error:
        broken = path.is_symlink()
        raise CheckpointError(
            f"{path} leads nowhere" if broken else f"{folder} has no {name}", do="download the checkpoint again"
        ) from error
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in it
        raise CheckpointError(f"{path} cannot be read", got=error, do="download the checkpoint again") from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a file", do="download the checkpoint again")
    if not _is_inside(path, folder):
        raise CheckpointError(f"{path} is a link out of the checkpoint", got=path.resolve(), do="copy the file here")
    if most is not None and found.st_size > most:
        raise CheckpointError(f"{path} is too large", got=f"{found.st_size} bytes", expected=f"at most {most}")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(f"{path} is a pointer of Git LFS", do="fetch the file itself: git lfs pull")
    return path


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a file is the checkpoint's own, or one of the blobs that a snapshot in Hugging Face's cache is."""
    root, target = folder.resolve(), path.resolve()
    if target.is_relative_to(root):
        return True
    return root.parent.name == "snapshots" and target.parent == root.parents[1] / "blobs"


def read_json(path: Path) -> Any:
    """Return what a JSON file of a checkpoint holds.

    Raises:
        CheckpointError: it is not JSON, or nested too deeply.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON", got=error, do="download the checkpoint again") from error
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [x for item in level for x in _items(item)]
        if not level:
            return data
    raise CheckpointError(f"{path} is nested too deeply", expected=f"at most {MAX_DEPTH} levels")


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def holds_weights(folder: Path) -> bool:
    """Return whether a checkpoint holds weights, of whatever form: a dry run needs none."""
    return any(os.path.lexists(folder / name) for name in (SINGLE, INDEX, *PICKLES, ADAPTER))


def weight_files(folder: Path, explicit: Any = None) -> list[Path]:
    """Return the files that hold a checkpoint's weights, in the order in which transformers reads them.

    They are those that `from_pretrained` takes: the file that the configuration names, else `model.safetensors`, else
    the files of its index. What else lies in the folder, such as parts of an earlier save, is not looked at.

    Args:
        folder: the checkpoint.
        explicit: `transformers_weights` of its configuration.

    Raises:
        CheckpointError: there are none, or one of them is no file that may be read.
    """
    if os.path.lexists(folder / ADAPTER):
        raise CheckpointError(
            f"{folder} holds an adapter ({ADAPTER}), which transformers would put onto another model's weights",
            do="merge it into the model (merge_and_unload) and save that",
        )
    if explicit is not None:
        if not isinstance(explicit, str) or not explicit.endswith((".safetensors", ".safetensors.index.json")):
            raise CheckpointError(
                "transformers_weights of config.json is no file of weights",
                got=repr(explicit),
                expected="*.safetensors or *.safetensors.index.json",
            )
        _require_inside(folder / "config.json", explicit)
        return _indexed(folder, explicit) if explicit.endswith(".json") else [checked_file(folder, explicit)]
    if os.path.lexists(folder / SINGLE):
        return [checked_file(folder, SINGLE)]
    if os.path.lexists(folder / INDEX):
        return _indexed(folder, INDEX)
    if pickles := [name for name in PICKLES if os.path.lexists(folder / name)]:
        raise CheckpointError(
            f"{folder} has no {SINGLE}",
            got=f"{pickles[0]}, which could run code when it is read",
            do="save the model again with transformers (save_pretrained)",
        )
    raise CheckpointError(
        f"{folder} has neither {SINGLE} nor {INDEX}", do="download the checkpoint again, as safetensors"
    )


def _indexed(folder: Path, name: str) -> list[Path]:
    index = checked_file(folder, name, most=MAX_SMALL_BYTES)
    data = read_json(index)
    listed = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise CheckpointError(f"{index} names no files", expected="weight_map: tensor → file", do="download it again")
    if "metadata" not in data:
        raise CheckpointError(f"{index} has no metadata", do="add it: transformers takes no index without")
    files = sorted(set(listed.values()))
    for file in files:
        _require_inside(index, file)
    return [checked_file(folder, file) for file in files]


def _require_inside(source: Path, name: str) -> None:
    """Refuse the name of a file that is not below the checkpoint's own folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{source} names a file outside of the checkpoint", got=repr(name))
