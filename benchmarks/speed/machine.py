"""The machine that a figure is of."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ptp.benchmarks.speed.turn import Device
from ptp.cuda import find_device
from ptp.runtime.backends.registry import usable_cpus

LIBRARIES = (
    "ptp-export",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "openvino-genai",
    "numpy",
    "pillow",
    "torch",
    "transformers",
)


def describe(device: Device = "cpu") -> dict[str, str]:
    """Return CPU, cores and memory, and the GPU that is measured; what the system does not tell is left out."""
    found = {"cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()}
    found["cores"] = str(usable_cpus())
    if memory := _field("/proc/meminfo", "MemTotal"):
        found["memory"] = f"{int(memory.split()[0]) / 2**20:.1f} GiB"
    vectors = [name for name in ("avx512f", "avx2", "asimd") if name in _flags()]
    found |= {"vectors": vectors[0] if vectors else "unknown", "system": platform.platform()}
    gpu = find_device() if device == "cuda" else None
    return found | ({"gpu": f"{gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB"} if gpu else {})


def libraries() -> dict[str, str]:
    """Return the versions of what may run, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _flags() -> list[str]:
    return (_field("/proc/cpuinfo", "flags") or _field("/proc/cpuinfo", "Features")).split()


def _field(file: str, name: str) -> str:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
