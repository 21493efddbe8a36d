"""The backends: which there are, what each needs, and which options it takes.

This module is light: a backend is imported when it is chosen.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptp.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from ptp.bundle.engine import EngineBackend
    from ptp.runtime.backends.base import LoadGraph


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may say about a backend; None leaves it to the backend.

    Attributes:
        provider: ONNX Runtime's execution provider: `cpu`, `cuda`, `tensorrt` or `nvtensorrtrtx`.
        threads: CPU threads.
        target: name of the engines to use; by default those that fit the GPU.
        precision: `fp32`, or `bf16` where the CPU computes with it.
    """

    provider: str | None = None
    threads: int | None = None
    target: str | None = None
    precision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A library that runs graphs.

    Attributes:
        load: returns the function that loads its graphs; raises ImportError where the library is not installed.
        extra: the package's extra that installs it; None for what is always there.
        options: the fields of `Options` that it understands.
    """

    load: "Callable[[Options], LoadGraph]"
    extra: str | None
    options: tuple[str, ...]


def _onnxruntime(options: Options) -> "LoadGraph":
    from ptp.runtime.backends.onnxruntime import loader

    return loader(options.provider or "cpu", threads=options.threads)


def _openvino(options: Options) -> "LoadGraph":
    from ptp.runtime.backends.openvino import loader

    return loader(options.precision or "fp32", threads=options.threads)


def _engines(backend: "EngineBackend") -> "Callable[[Options], LoadGraph]":
    def load(options: Options) -> "LoadGraph":
        from ptp.runtime.backends.tensorrt import EngineLoader

        return EngineLoader(backend, target=options.target)

    return load


BACKENDS = {
    "onnxruntime": Backend(load=_onnxruntime, extra=None, options=("provider", "threads")),
    "openvino": Backend(load=_openvino, extra="openvino", options=("precision", "threads")),
    "tensorrt-rtx": Backend(load=_engines("tensorrt-rtx"), extra="rtx", options=("target",)),
    "tensorrt": Backend(load=_engines("tensorrt"), extra="tensorrt", options=("target",)),
}
"""By the name that users give them."""

DEFAULT = "onnxruntime"


def graph_loader(
    backend: str = DEFAULT,
    *,
    provider: str | None = None,
    threads: int | None = None,
    target: str | None = None,
    precision: str | None = None,
) -> "LoadGraph":
    """Return the function that loads a bundle's graphs on a backend; the arguments are those of `Options`.

    Raises:
        ConfigError: there is no such backend, it has no such option, or an option's value cannot be used.
        BackendError: the backend is not installed, or there is no device for it.
    """
    if backend not in BACKENDS:
        raise ConfigError("no such backend", got=repr(backend), expected=" or ".join(BACKENDS))
    chosen = BACKENDS[backend]
    options = Options(provider=provider, threads=threads, target=target, precision=precision)
    for name in ("provider", "threads", "target", "precision"):
        if getattr(options, name) is not None and name not in chosen.options:
            owners = " or ".join(key for key, value in BACKENDS.items() if name in value.options)
            raise ConfigError(f"{name} is an option of {owners}", got=f"backend {backend}", do="leave it out")
    most = usable_cpus()
    if threads is not None and not 1 <= threads <= most:
        raise ConfigError("threads is out of range", got=threads, expected=f"1 to {most}, the CPUs of this machine")
    try:
        return chosen.load(options)
    except ImportError as error:
        install = f'pip install "ptp-export[{chosen.extra}]"' if chosen.extra else "install onnxruntime"
        raise BackendError(f"the backend {backend} is not installed", got=error, do=install) from error


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
