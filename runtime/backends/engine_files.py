"""Which engine of a bundle fits this machine, and whether it still is what its fingerprint says."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ptp.bundle import Bundle, HashCache
from ptp.bundle.engine import (
    ENGINE_FOLDER,
    EngineBackend,
    EngineConfig,
    EngineKind,
    build_command,
    engine_folder,
    engine_targets,
    read_engine_config,
)
from ptp.bundle.hashes import FileState
from ptp.bundle.manifest import GraphSpec
from ptp.bundle.reader import verify_file
from ptp.cuda import CudaDevice
from ptp.errors import BackendError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What engines are run by: a library of some version, on a device."""

    backend: EngineBackend
    version: str
    device: CudaDevice


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """An engine that was verified.

    Attributes:
        path: the engine.
        config: its fingerprint.
        rebuild: the command that builds it again.
        state: of the file when it was verified.
    """

    path: Path
    config: EngineConfig
    rebuild: str
    state: FileState


def find_engine(bundle: Bundle, spec: GraphSpec, kind: EngineKind, machine: Machine, target: str | None) -> EngineFile:
    """Return the engine of a graph that fits a machine.

    Args:
        bundle: a verified bundle.
        spec: the graph that the engine was built from.
        kind: of the engine.
        machine: what is to run it.
        target: the engine's target; by default the one whose compute capability is the device's.

    Raises:
        ConfigError: several targets fit.
        BackendError: there is no engine for the device, or it was built by another version or from another graph.
        SchemaError: a fingerprint is malformed.
        IntegrityError: the engine file is missing or was altered.
    """
    target = _choose(bundle, kind, machine, target)
    folder = engine_folder(bundle.folder, machine.backend, target, kind)
    config = read_engine_config(folder)
    path = folder / config.file_name
    rebuild = build_command(
        bundle.folder,
        machine.backend,
        target=target,
        max_context=config.max_context,
        flags=[name for name, value in config.flags.items() if value],
        force=True,
    )
    if problems := _differences(bundle, spec, kind, machine, target, config):
        suits = config.compute_capability == machine.device.compute_capability
        raise BackendError(
            f"the engine in {folder} does not fit",
            got=", ".join(problems),
            do=f"build it again: {rebuild}"
            if suits
            else f"build one for this GPU: {build_command(bundle.folder, machine.backend)}",
        )
    hashes = HashCache()
    state = verify_file(path, config.engine, bundle.folder.resolve(), do=f"build it again: {rebuild}", hashes=hashes)
    hashes.save()
    return EngineFile(path=path, config=config, rebuild=rebuild, state=state)


def _choose(bundle: Bundle, kind: EngineKind, machine: Machine, target: str | None) -> str:
    """Return the target whose engine is to be used."""
    backend, device = machine.backend, machine.device
    command = build_command(bundle.folder, backend)
    there = engine_targets(bundle.folder, backend, kind)
    if not there:
        # what the bundle's build.sh has built has no fingerprint, and only --force replaces it
        force = any((bundle.folder / ENGINE_FOLDER / backend).glob(f"*/{kind}"))
        raise BackendError(
            f"{bundle.folder} has no {kind} engine for {backend}",
            do=f"build it: {build_command(bundle.folder, backend, force=force)}",
        )
    if target is not None:
        if target not in there:
            raise ConfigError(f"there is no {kind} engine for target {target!r}", expected=" or ".join(there))
        return target
    built_for = {
        name: read_engine_config(engine_folder(bundle.folder, backend, name, kind)).compute_capability for name in there
    }
    fitting = [name for name, capability in built_for.items() if capability == device.compute_capability]
    if not fitting:
        raise BackendError(
            f"no {kind} engine was built for this GPU",
            got=", ".join(f"{name} of compute capability {_dotted(x)}" for name, x in built_for.items()),
            expected=f"{_dotted(device.compute_capability)}, that of {device.name}",
            do=f"build one: {command}",
        )
    if len(fitting) > 1:
        raise ConfigError("several engines fit this GPU", got=", ".join(fitting), do="choose one with --target")
    return fitting[0]


def _differences(
    bundle: Bundle, spec: GraphSpec, kind: EngineKind, machine: Machine, target: str, config: EngineConfig
) -> list[str]:
    """Return all that a fingerprint should say otherwise."""
    device, files = machine.device, bundle.manifest.files
    pairs = (
        ("kind", config.kind, kind),
        ("backend", config.backend, machine.backend),
        ("target", config.target, target),
        ("graph", config.graph, spec.file),
        ("compute capability", _dotted(config.compute_capability), _dotted(device.compute_capability)),
        (f"version of {machine.backend}", config.builder, machine.version),
        ("precision", config.precision, bundle.manifest.model.precision),
    )
    problems = [f"{what} {found} instead of {wanted}" for what, found, wanted in pairs if found != wanted]
    if spec.file not in config.graph_files:
        problems.append(f"no hash of {spec.file}")
    changed = [name for name, entry in config.graph_files.items() if files.get(name) != entry]
    return problems + [f"built from another {name}" for name in changed]


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))
