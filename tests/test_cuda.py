"""Whether there is a device, and why there is none, in CUDA's words."""

import sys
from types import SimpleNamespace

import cuda.bindings.runtime
import pytest

from ptp.cuda import device_problem, find_device, used_memory

SUCCESS, OLD_DRIVER = 0, 35
ORIN = SimpleNamespace(name=b"Orin", major=8, minor=7, totalGlobalMem=7 << 30)


def bindings(error: int) -> SimpleNamespace:
    return SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=SUCCESS),
        cudaGetDeviceProperties=lambda index: (error, ORIN),
        cudaMemGetInfo=lambda: (error, 2 << 30, 7 << 30),
        cudaGetErrorString=lambda error: (SUCCESS, b"CUDA driver version is insufficient for CUDA runtime version"),
    )


def test_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.bindings, "runtime", bindings(SUCCESS))
    device = find_device()
    assert device is not None
    assert (device.name, device.compute_capability, device.memory_bytes) == ("Orin", (8, 7), 7 << 30)


def test_a_driver_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.bindings, "runtime", bindings(OLD_DRIVER))
    assert find_device() is None
    assert device_problem() == "CUDA driver version is insufficient for CUDA runtime version"


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: int) -> None:
        raise RuntimeError("libcuda.so.1\nnot found")

    monkeypatch.setattr(cuda.bindings, "runtime", SimpleNamespace(cudaGetDeviceProperties=fail))
    assert find_device() is None
    assert device_problem() == "libcuda.so.1 not found"


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert find_device() is None
    assert "cuda-bindings is not installed" in device_problem()


def test_memory_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.bindings, "runtime", bindings(SUCCESS))
    assert used_memory() == 5 << 30
    monkeypatch.setattr(cuda.bindings, "runtime", bindings(OLD_DRIVER))
    assert used_memory() == 0
