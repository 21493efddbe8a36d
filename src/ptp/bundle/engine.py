"""An engine folder, `engines/<backend>/<target>/{visual,embed,llm}`: the engine and its fingerprint, `config.json`.

An engine runs only on what it was built for, and holds no readable names; its fingerprint says all that has to be
compared before it is given an input. `docs/bundle.md` describes the format for people who write their own loader.
"""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ptp.bundle.hashes import read_file
from ptp.bundle.manifest import Graphs, GraphSpec, Precision
from ptp.bundle.schema import (
    MAX_FILES,
    MAX_POSITIONS,
    MAX_RANK,
    MAX_TENSORS,
    Bytes,
    Count,
    FileEntry,
    Integer,
    Line,
    Measure,
    Model,
    Relative,
    TensorSpec,
    decode,
    validate,
)
from ptp.errors import SchemaError

ENGINE_FOLDER = "engines"
CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 1 << 22

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
EngineKind = Literal["visual", "embed", "llm"]
MODULES: dict[EngineBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The Python module of each backend's library, which builds engines and runs them."""

KINDS: tuple[EngineKind, ...] = ("visual", "embed", "llm")
Shape = Annotated[tuple[Count, ...], Field(max_length=MAX_RANK)]
Version = Annotated[int, Field(ge=0, le=1000)]
Setting = bool | Annotated[int, Field(ge=-(1 << 40), le=1 << 40)] | Line


class ShapeRange(Model):
    """Smallest, most frequent and largest shape of an input; of an input of shapes, such as `num_kept`, its values."""

    min: Shape
    opt: Shape
    max: Shape


class Profile(Model):
    """One optimisation profile: what it is for (`vision`, `tokens`, `prefill`, `decode`), and what is not fixed."""

    name: Line
    shapes: dict[Line, ShapeRange] = Field(max_length=MAX_TENSORS)

    def bounds(self) -> dict[str, list[Shape]]:
        """Return the smallest, the most frequent and the largest shape of each input."""
        return {name: [shape.min, shape.opt, shape.max] for name, shape in self.shapes.items()}


class EngineConfig(Model):
    """The whole of an engine's `config.json`.

    Attributes:
        kind: `visual` for the vision graph, `embed` for the token embedding, `llm` for the decoder.
        backend: what runs it.
        target: what it was built for, a name of `ptp build --target`.
        compute_capability: (major, minor) of the GPUs it runs on.
        builder: version of the library that built it; only that version loads it.
        precision: of weights, inputs and outputs.
        flags: every builder flag and setting that was not the default.
        profiles: in the order of the engine's own.
        max_context: tokens that the language model's cache has room for; the same for all engines of a target.
        inputs: as the engine itself names and types them.
        outputs: likewise.
        graph: the ONNX file that was built, relative to the bundle, and each file it was read from with its SHA-256.
        engine: size and SHA-256 of the engine file.
        seconds: wall time of the build.
        peak_bytes: largest resident memory of the process that built it.
        estimated_bytes: what `ptp build --dry-run` had estimated for that.
    """

    schema_version: Annotated[Literal[1], Integer] = 1
    kind: EngineKind
    backend: EngineBackend
    target: Line
    compute_capability: tuple[Version, Version]
    builder: Line
    precision: Precision
    flags: dict[Line, Setting] = Field(max_length=256)
    profiles: tuple[Profile, ...] = Field(min_length=1, max_length=16)
    max_context: int = Field(ge=1, le=MAX_POSITIONS)
    inputs: tuple[TensorSpec, ...] = Field(max_length=MAX_TENSORS)
    outputs: tuple[TensorSpec, ...] = Field(max_length=MAX_TENSORS)
    graph: Relative
    graph_files: dict[Relative, FileEntry] = Field(max_length=MAX_FILES)
    engine: FileEntry
    seconds: Measure
    peak_bytes: Bytes
    estimated_bytes: Bytes

    @property
    def file_name(self) -> str:
        """Name of the engine file, beside the config."""
        return f"{self.kind}.engine"

    def to_json(self) -> str:
        """Return the text of `config.json`."""
        return self.model_dump_json(indent=2) + "\n"


def graph_of(kind: EngineKind, graphs: Graphs) -> GraphSpec:
    """Return the graph that an engine is built from."""
    return {"visual": graphs.vision_encoder, "embed": graphs.embed_tokens, "llm": graphs.decoder_model_merged}[kind]


def engine_folder(bundle: Path, backend: EngineBackend, target: str, kind: EngineKind) -> Path:
    """Return where a bundle's engine belongs."""
    return bundle / ENGINE_FOLDER / backend / target / kind


def parse_engine_config(text: str, name: str, do: str) -> EngineConfig:
    """Return the fingerprint that a text is.

    Args:
        text: of a `config.json`.
        name: of the file, for errors.
        do: what repairs it.

    Raises:
        SchemaError: it is malformed.
    """
    decode(text, name, do)
    return validate(EngineConfig, text, f"{name} is not an engine's fingerprint", do)


def read_engine_config(folder: Path) -> EngineConfig:
    """Read and validate the fingerprint of an engine, without looking at the engine.

    Raises:
        IntegrityError: there is none, or it is too large.
        SchemaError: it is malformed.
    """
    path = folder / CONFIG_NAME
    target, backend, _, bundle = folder.parents[:4]
    do = f"build the engine again: {build_command(bundle, backend.name, target=target.name, force=True)}"
    try:
        text = read_file(path, MAX_CONFIG_BYTES, do=do).decode()
    except UnicodeDecodeError as error:
        raise SchemaError(f"{path} is not UTF-8 text", got=error, do=do) from error
    return parse_engine_config(text, str(path), do)


def read_engines(bundle: Path) -> tuple[EngineConfig, ...]:
    """Read the fingerprints of all engines that a bundle's folder has, by backend, target and kind.

    Raises:
        IntegrityError: one is too large.
        SchemaError: one is malformed.
    """
    paths = sorted((bundle / ENGINE_FOLDER).glob(f"*/*/*/{CONFIG_NAME}"))
    return tuple(read_engine_config(path.parent) for path in paths if not path.parents[1].name.startswith("."))


def engine_targets(bundle: Path, backend: EngineBackend, kind: EngineKind) -> list[str]:
    """Return the targets that a bundle has an engine of a kind for; what is still being built is not there yet."""
    paths = (bundle / ENGINE_FOLDER / backend).glob(f"*/{kind}/{CONFIG_NAME}")
    return sorted(path.parents[1].name for path in paths if not path.parents[1].name.startswith("."))


BUILD_OPTIONS = {
    "WEIGHT_STREAMING": "--weight-streaming",
    "VERSION_COMPATIBLE": "--version-compatible",
    "HARDWARE_COMPATIBILITY": "--hardware-compatible",
}
"""Settings in a fingerprint, and the options of `ptp build` that they come from."""


def build_command(
    bundle: str | Path,
    backend: str,
    *,
    target: str | None = None,
    max_context: int | None = None,
    flags: Collection[str] = (),
    force: bool = False,
) -> str:
    """Return the command that builds a bundle's engines, for a shell.

    Args:
        bundle: its folder, as it is to be written.
        backend: what to build with.
        target: what for; None for this machine's GPU.
        max_context: tokens that the cache has room for; None for the default.
        flags: settings that are on, by their names in a fingerprint.
        force: replace engines that are there.
    """
    words = ["ptp", "build", str(bundle), "--backend", backend]
    words += ["--target", target] if target else []
    words += ["--max-context", str(max_context)] if max_context else []
    words += [option for flag, option in BUILD_OPTIONS.items() if flag in flags]
    return shlex.join(words + ["--force"] * force)
