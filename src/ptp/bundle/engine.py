"""An engine folder, `engines/<backend>/<target>/{visual,llm}`: the engine and its fingerprint, `config.json`.

An engine runs only on what it was built for, and holds no readable names; its fingerprint says all that has to be
compared before it is given an input. `docs/bundle.md` describes the format for people who write their own loader.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ptp.bundle.manifest import MAX_DIMENSION, FileEntry, Line, Model, Precision, TensorSpec
from ptp.errors import IntegrityError, SchemaError

ENGINE_FOLDER = "engines"
CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 1 << 22

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
EngineKind = Literal["visual", "llm"]
Shape = tuple[Annotated[int, Field(ge=0, le=MAX_DIMENSION)], ...]


class ShapeRange(Model):
    """Smallest, most frequent and largest shape of an input; of an input of shapes, such as `num_kept`, its values."""

    min: Shape
    opt: Shape
    max: Shape


class Profile(Model):
    """One optimisation profile: what it is for (`vision`, `prefill`, `decode`), and the inputs that are not fixed."""

    name: Line
    shapes: dict[Line, ShapeRange]


class EngineConfig(Model):
    """The whole of an engine's `config.json`.

    Attributes:
        kind: `visual` for the vision graph, `llm` for the decoder.
        backend: what runs it.
        target: what it was built for, a name of `ptp build --target`.
        compute_capability: (major, minor) of the GPUs it runs on.
        builder: version of the library that built it; only that version loads it.
        precision: of weights, inputs and outputs.
        flags: every builder flag and setting that was not the default.
        profiles: in the order of the engine's own.
        max_context: tokens that the cache has room for; null for `visual`.
        inputs: as the engine itself names and types them.
        outputs: likewise.
        graph: the ONNX file that was built, relative to the bundle, and each file it was read from with its SHA-256.
        engine: size and SHA-256 of the engine file.
        seconds: wall time of the build.
        peak_bytes: largest resident memory of the process that built it.
        estimated_bytes: what `ptp build --dry-run` had estimated for that.
    """

    schema_version: Literal[1] = 1
    kind: EngineKind
    backend: EngineBackend
    target: Line
    compute_capability: tuple[int, int]
    builder: Line
    precision: Precision
    flags: dict[Line, bool | int | Line]
    profiles: tuple[Profile, ...] = Field(min_length=1, max_length=16)
    max_context: int | None = Field(ge=1)
    inputs: tuple[TensorSpec, ...] = Field(max_length=4096)
    outputs: tuple[TensorSpec, ...] = Field(max_length=4096)
    graph: Line
    graph_files: dict[Line, FileEntry]
    engine: FileEntry
    seconds: float
    peak_bytes: int
    estimated_bytes: int

    @property
    def file_name(self) -> str:
        """Name of the engine file, beside the config."""
        return f"{self.kind}.engine"

    def to_json(self) -> str:
        """Return the text of `config.json`."""
        return self.model_dump_json(indent=2) + "\n"


def engine_folder(bundle: Path, backend: EngineBackend, target: str, kind: EngineKind) -> Path:
    """Return where a bundle's engine belongs."""
    return bundle / ENGINE_FOLDER / backend / target / kind


def read_engine_config(folder: Path) -> EngineConfig:
    """Read and validate the fingerprint of an engine, without looking at the engine.

    Raises:
        IntegrityError: there is none, or it is too large.
        SchemaError: it is malformed.
    """
    path = folder / CONFIG_NAME
    do = "build the engine again: ptp build BUNDLE --force"
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", do=do)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise IntegrityError(f"{path} is too large", got=f"{path.stat().st_size} bytes", expected=MAX_CONFIG_BYTES)
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        return EngineConfig.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, x['loc']))}: {x['msg']}" for x in error.errors()[:5])
        raise SchemaError(f"{path} is not an engine's fingerprint", got=problems, do=do) from error
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{path} is not JSON", got=error, do=do) from error


def read_engines(bundle: Path) -> tuple[EngineConfig, ...]:
    """Read the fingerprints of all engines that a bundle's folder has, by backend, target and kind.

    Raises:
        IntegrityError: one is too large.
        SchemaError: one is malformed.
    """
    paths = sorted((bundle / ENGINE_FOLDER).glob(f"*/*/*/{CONFIG_NAME}"))
    return tuple(read_engine_config(path.parent) for path in paths)
