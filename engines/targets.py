"""What an engine can be built for: RTX cards by their compute capability, Jetson modules by name."""

from dataclasses import dataclass

from ptp.bundle.engine import EngineBackend
from ptp.bundle.manifest import Precision
from ptp.errors import ConfigError

GIB = 1 << 30
WORKSPACE_SHARE = 8
"""A tactic's scratch may take one part in this many of a board's memory, which the system and the weights share."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A GPU, or a board with one.

    Attributes:
        name: as in `ptp build --target`.
        backend: the library whose builder knows it.
        compute_capability: (major, minor).
        memory_bytes: memory of the board, shared between system and GPU; None for cards, whose memory differs.
        precisions: of the weights that its units compute with.
        software: what it is, and the release of library and system it comes with.
    """

    name: str
    backend: EngineBackend
    compute_capability: tuple[int, int]
    memory_bytes: int | None = None
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    software: str

    @property
    def workspace_bytes(self) -> int | None:
        """Most scratch memory of one tactic; None leaves it to the builder."""
        return None if self.memory_bytes is None else self.memory_bytes // WORKSPACE_SHARE


def _card(major: int, minor: int, software: str) -> Target:
    name = f"sm{major}{minor}"
    return Target(name=name, backend="tensorrt-rtx", compute_capability=(major, minor), software=software)


def _board(name: str, capability: tuple[int, int], gibibytes: int, software: str) -> Target:
    return Target(
        name=name,
        backend="tensorrt",
        compute_capability=capability,
        memory_bytes=gibibytes * GIB,
        software=software,
    )


_ORIN = "JetPack 6.x with TensorRT 10.3, or JetPack 7.2 with 10.16"

TARGETS = {
    target.name: target
    for target in (
        _card(7, 5, "Turing: RTX 20"),
        _card(8, 0, "Ampere: A100"),
        _card(8, 6, "Ampere: RTX 30"),
        _card(8, 9, "Ada: RTX 40"),
        _card(12, 0, "Blackwell: RTX 50"),
        _card(12, 1, "Blackwell: GB10"),
        _board("orin-nano", (8, 7), 8, f"Jetson Orin Nano 8 GB: {_ORIN}"),
        _board("orin-nx", (8, 7), 16, f"Jetson Orin NX 16 GB (of an 8 GB module the memory is orin-nano's): {_ORIN}"),
        _board("agx-orin", (8, 7), 64, f"Jetson AGX Orin 64 GB (there is one of 32 GB, too): {_ORIN}"),
        _board("thor", (11, 0), 128, "Jetson Thor 128 GB: JetPack 7.0 with TensorRT 10.13, or 7.2 with 10.16"),
    )
}


def targets_of(text: str, backend: EngineBackend) -> tuple[Target, ...]:
    """Return the targets that a comma-separated list names, each once.

    Raises:
        ConfigError: a name that is not one of the backend's targets, or none at all.
    """
    known = {name: target for name, target in TARGETS.items() if target.backend == backend}
    names = [name.strip() for name in text.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise ConfigError(f"{backend} has no such target", got=", ".join(map(repr, wrong)), expected=", ".join(known))
    return tuple(known[name] for name in dict.fromkeys(names))


def target_of_device(compute_capability: tuple[int, int], memory_bytes: int, backend: EngineBackend) -> Target:
    """Return the target that a device in this machine is, of several boards with one GPU the nearest in memory.

    Args:
        compute_capability: (major, minor) of the device.
        memory_bytes: its memory; on a board a little less than the board's.
        backend: the library to build with.

    Raises:
        ConfigError: the backend does not build for such a device.
    """
    fitting = [x for x in TARGETS.values() if (x.backend, x.compute_capability) == (backend, compute_capability)]
    if not fitting:
        major, minor = compute_capability
        raise ConfigError(
            f"{backend} has no target for the GPU of this machine",
            got=f"compute capability {major}.{minor}",
            expected=", ".join(name for name, target in TARGETS.items() if target.backend == backend),
            do="choose what to build for with --target",
        )
    return min(fitting, key=lambda target: abs((target.memory_bytes or 0) - memory_bytes))
