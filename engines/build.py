"""Build the engines of a bundle: for each target a folder, written beside its place and renamed into it."""

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ptp.bundle.engine import (
    BUILD_OPTIONS,
    CONFIG_NAME,
    KINDS,
    EngineBackend,
    EngineConfig,
    EngineKind,
    Profile,
    build_command,
    engine_folder,
    graph_of,
)
from ptp.bundle.hashes import cache_folder
from ptp.bundle.manifest import FileEntry, GraphSpec, TensorSpec
from ptp.bundle.reader import Bundle
from ptp.bundle.writer import file_entry, staged
from ptp.cuda import device_problem, find_device
from ptp.engines import tensorrt
from ptp.engines.build_script import SCRIPT_NAME
from ptp.engines.memory import estimate
from ptp.engines.onnx_files import external_files
from ptp.engines.profiles import default_max_context, profiles_of
from ptp.engines.targets import Target
from ptp.engines.worker import Tensor
from ptp.errors import BuildError, ConfigError, IntegrityError

Progress = Callable[[str], None]
"""Called with what is being done."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What an engine is to be able to do beside running where it was built.

    Attributes:
        weight_streaming: run with less GPU memory than its weights need, slower.
        version_compatible: be loaded by later releases of TensorRT's major version.
        hardware_compatible: run on other boards of the same compute capability.
    """

    weight_streaming: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False

    @property
    def flags(self) -> list[str]:
        """Those that are on, by their names in a fingerprint."""
        names = {option.removeprefix("--").replace("-", "_"): flag for flag, option in BUILD_OPTIONS.items()}
        return [flag for name, flag in names.items() if getattr(self, name)]


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """An engine folder that was written, and its fingerprint."""

    folder: Path
    config: EngineConfig


def build_engines(
    bundle: Bundle,
    backend: EngineBackend,
    targets: Sequence[Target],
    *,
    max_context: int | None = None,
    options: BuildOptions | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[BuiltEngine]:
    """Build the engines of the vision graph, the embedding and the decoder for each target.

    Args:
        bundle: a verified bundle.
        backend: the library to build with.
        targets: of that backend.
        max_context: tokens that the language model's cache has room for; None for room for an answer of 256 tokens.
        options: further abilities of the engines.
        force: replace engines that are there.
        progress: told of every step.

    Raises:
        ConfigError: an option does not fit the bundle or the backend, or a destination may not be written.
        BuildError: the library or the device is not there, or the builder refused a graph; the target's folder is as it
            was before.
        IntegrityError: a graph reads a file that is not the bundle's.
    """
    options, say = options or BuildOptions(), progress or (lambda what: None)
    context = default_max_context(bundle.manifest) if max_context is None else max_context
    _check_options(backend, options)
    places = {target: _place(bundle, target) for target in targets}
    command = build_command(
        bundle.folder.resolve().name,
        backend,
        target=",".join(target.name for target in targets),
        max_context=max_context,
        flags=options.flags,
    )
    for target, folder in places.items():
        _check_precision(bundle, target)
        _check_place(folder, force=force)
        _require_builder(bundle, target, command)
    jobs = [_Job.of(bundle, kind, context) for kind in KINDS]
    return [
        engine
        for target, folder in places.items()
        for engine in _build_target(folder, target, jobs, options, force=force, say=say)
    ]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is built for every target: a graph, with the profiles and the files it is read from."""

    bundle: Bundle
    kind: EngineKind
    max_context: int
    graph: GraphSpec
    profiles: tuple[Profile, ...]
    files: dict[str, FileEntry]

    @classmethod
    def of(cls, bundle: Bundle, kind: EngineKind, max_context: int) -> "_Job":
        graph, profiles = graph_of(kind, bundle.manifest.graphs), profiles_of(kind, bundle.manifest, max_context)
        files = _graph_files(bundle, graph)
        return cls(bundle=bundle, kind=kind, max_context=max_context, graph=graph, profiles=profiles, files=files)

    def run(self, folder: Path, target: Target, options: BuildOptions) -> EngineConfig:
        """Build one engine into a folder, with its fingerprint beside it."""
        engine, estimated = folder / f"{self.kind}.engine", estimate(self.bundle, target, self.kind, self.max_context)
        answer = tensorrt.run_builder(
            target.backend,
            self.bundle.path(self.graph.file),
            engine=str(engine.absolute()),
            inputs=_tensors(self.graph.inputs),
            outputs=_tensors(self.graph.outputs),
            profiles=[profile.bounds() for profile in self.profiles],
            **_settings(target, options),
        )
        config = EngineConfig(
            kind=self.kind,
            backend=target.backend,
            target=target.name,
            compute_capability=target.compute_capability,
            builder=answer.version,
            precision=self.bundle.manifest.model.precision,
            flags=answer.settings,
            profiles=self.profiles,
            max_context=self.max_context,
            inputs=_specs(answer.inputs, self.graph.inputs),
            outputs=_specs(answer.outputs, self.graph.outputs),
            graph=self.graph.file,
            graph_files=self.files,
            engine=file_entry(engine),
            seconds=round(answer.seconds, 3),
            peak_bytes=answer.peak_bytes,
            estimated_bytes=estimated.build_bytes,
        )
        (folder / CONFIG_NAME).write_text(config.to_json(), encoding="utf-8")
        return config


def _build_target(
    folder: Path, target: Target, jobs: Sequence[_Job], options: BuildOptions, *, force: bool, say: Progress
) -> Iterator[BuiltEngine]:
    """Build all engines of a target, or leave its folder as it is."""
    configs = {}
    try:
        with staged(folder, force=force, check=_check_place) as stage:
            for job in jobs:
                say(f"building {job.kind} for {target.name}")
                (stage / job.kind).mkdir()
                configs[job.kind] = job.run(stage / job.kind, target, options)
    finally:
        for parent in (folder.parent, folder.parent.parent):  # made for a build that failed
            with contextlib.suppress(OSError):  # there is something in it
                parent.rmdir()
    return (BuiltEngine(folder=folder / kind, config=config) for kind, config in configs.items())


def _place(bundle: Bundle, target: Target) -> Path:
    """Return the folder of a target's engines.

    Raises:
        ConfigError: a link leads out of the bundle.
    """
    folder = engine_folder(bundle.folder, target.backend, target.name, KINDS[0]).parent
    if not folder.resolve().is_relative_to(bundle.folder.resolve()):
        raise ConfigError(f"{folder} leads out of the bundle", do="remove the link")
    return folder


def _check_precision(bundle: Bundle, target: Target) -> None:
    """Refuse weights that a target's units do not compute with; the networks are strongly typed."""
    precision = bundle.manifest.model.precision
    if precision not in target.precisions:
        raise ConfigError(
            f"{target.name} does not compute with the weights of this bundle",
            got=precision,
            expected=" or ".join(target.precisions),
            do="export it again with another --dtype",
        )


def _check_place(folder: Path, *, force: bool) -> None:
    """Refuse a folder that exists, or with `force` one that holds anything but engines."""
    if not folder.exists():
        return
    if not force:
        raise ConfigError(f"{folder} exists", do="replace its engines with --force")
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {*KINDS}:
        raise ConfigError(f"{folder} holds more than engines, so --force does not replace it", do="look into it")


def _check_options(backend: EngineBackend, options: BuildOptions) -> None:
    names = [name for name in ("version_compatible", "hardware_compatible") if getattr(options, name)]
    if names and backend == "tensorrt-rtx":
        raise ConfigError(
            "TensorRT-RTX has no engines for other releases or GPUs",
            got=", ".join(f"--{name.replace('_', '-')}" for name in names),
            do="leave it out, and name each GPU in --target",
        )


def _require_builder(bundle: Bundle, target: Target, command: str) -> None:
    """Refuse a target that cannot be built for here: RTX cards need the library, boards the board itself.

    `command` is the one to run there.
    """
    there = tensorrt.is_installed(target.backend)
    if target.backend == "tensorrt-rtx":
        if not there:
            raise BuildError("building for RTX cards needs the extra `rtx`", do='pip install "ptp-export[rtx]"')
        return
    device, folder = find_device(), bundle.folder.resolve()
    if device is None or not there:
        script = shlex.join(["bash", f"{folder.name}/{SCRIPT_NAME}", target.name])
        without = f" (or, without this package: {script})" if (folder / SCRIPT_NAME).exists() else ""
        raise BuildError(
            "TensorRT engines are built on the device that runs them",
            got=f"no CUDA device here ({device_problem()})" if device is None else "no Python package tensorrt here",
            do=f"copy the bundle there: scp -r {shlex.quote(str(folder))} user@DEVICE: and on it run: "
            f"{command}{without}",
        )
    if device.compute_capability != target.compute_capability:
        raise ConfigError(
            f"this device is not {target.name}",
            got=f"{device.name} with compute capability {'.'.join(map(str, device.compute_capability))}",
            expected=".".join(map(str, target.compute_capability)),
            do="build on the device that is to run the engine",
        )


def _settings(target: Target, options: BuildOptions) -> dict[str, Any]:
    """Return the fields of a builder's request that follow from target and options."""
    # that one is no flag of the builder's but a level
    flags = [flag for flag in options.flags if flag != "HARDWARE_COMPATIBILITY"]
    settings: dict[str, Any] = {"flags": flags, "workspace_bytes": target.workspace_bytes}
    if target.backend == "tensorrt-rtx":
        return settings | {"compute_capability": "SM" + "".join(map(str, target.compute_capability))}
    if options.hardware_compatible:
        settings["hardware_compatibility"] = "SAME_COMPUTE_CAPABILITY"
    folder = cache_folder()
    return settings | {"timing_cache": str(folder / f"{target.name}.timing") if folder else None}


def _graph_files(bundle: Bundle, graph: GraphSpec) -> dict[str, FileEntry]:
    """Return the graph's file and those that it reads weights from, as the manifest lists them."""
    path = bundle.path(graph.file)
    names = [graph.file, *sorted(str(PurePosixPath(graph.file).parent / x) for x in external_files(path))]
    if foreign := [name for name in names if name not in bundle.manifest.files]:
        raise IntegrityError(
            f"{path} reads files that are not the bundle's", got=", ".join(foreign), do="export the bundle again"
        )
    return {name: bundle.manifest.files[name] for name in names}


def _tensors(specs: Sequence[TensorSpec]) -> list[Tensor]:
    return [(spec.name, spec.dtype, [*spec.shape]) for spec in specs]


def _specs(found: Sequence[Tensor], graph: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the network's inputs or outputs, open dimensions under the manifest's names."""
    known = {spec.name: spec for spec in graph}
    return tuple(
        TensorSpec(
            name=name,
            dtype=known[name].dtype,
            shape=tuple(x if y == -1 else y for x, y in zip(known[name].shape, shape, strict=True)),
        )
        for name, _, shape in found
    )
