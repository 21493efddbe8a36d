"""The tokenizer that a bundle ships; one that no runtime would load is refused before anything is written."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ptp.bundle.tokenizer import TOKENIZER, read_tokenizer
from ptp.errors import CheckpointError


def check_tokenizer(folder: Path) -> None:
    """Refuse a checkpoint's `tokenizer.json`, if it has one, before transformers loads it.

    Raises:
        CheckpointError: runtimes do not load it.
    """
    file = folder / TOKENIZER
    if file.is_file():
        _check(file.read_bytes(), str(file))


def shipped_tokenizer(folder: Path, backend: Any) -> bytes:
    """Return the `tokenizer.json` of the bundle: the checkpoint's, unless transformers runs another.

    Args:
        folder: the checkpoint's.
        backend: the tokenizer that transformers runs; the ids that it gives are the ones the model was trained with.

    Raises:
        CheckpointError: runtimes do not load it.
    """
    file = folder / TOKENIZER
    if file.is_file() and Tokenizer.from_file(str(file)).to_str() == backend.to_str():
        data, name = file.read_bytes(), str(file)
    else:
        data, name = backend.to_str(pretty=True).encode(), f"the tokenizer that transformers runs for {folder}"
    _check(data, name, backend)
    return data


def _check(data: bytes, name: str, library: Any = None) -> None:
    try:
        read = read_tokenizer(data)
        if library and read.normalizer:
            read.check_normalized(library.normalizer.normalize_str)
    except ValueError as error:
        raise CheckpointError(
            f"no runtime could use {name}", got=error, expected="a tokenizer whose work is bounded (docs/bundle.md)"
        ) from error
