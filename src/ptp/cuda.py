"""The CUDA device that engines run on, if this machine has one."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CudaDevice:
    """A GPU.

    Attributes:
        name: the driver's name of it.
        compute_capability: (major, minor).
        memory_bytes: of the GPU; of a Jetson, the memory that it shares with the system.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


def find_device() -> CudaDevice | None:
    """Return the first CUDA device (`CUDA_VISIBLE_DEVICES` chooses); None without device, driver or `cuda-bindings`.

    Never raises. TensorRT must not be asked instead: without a driver its `createInferRuntime` returns garbage.
    """
    found = _ask()
    return found if isinstance(found, CudaDevice) else None


def device_problem() -> str:
    """Return why `find_device` finds none, in a few words: CUDA's own, or what is not installed."""
    found = _ask()
    return "there is one" if isinstance(found, CudaDevice) else found


def used_memory() -> int:
    """Return the bytes in use on the first CUDA device, by whatever program; 0 where nothing can be asked."""
    if find_device() is None:
        return 0
    from cuda.bindings import runtime

    error, free, total = runtime.cudaMemGetInfo()
    return int(total - free) if error == runtime.cudaError_t.cudaSuccess else 0


def _ask() -> CudaDevice | str:
    try:
        from cuda.bindings import runtime
    except ImportError:
        return "the Python package cuda-bindings is not installed"
    try:
        error, device = runtime.cudaGetDeviceProperties(0)
        if error != runtime.cudaError_t.cudaSuccess:
            words: str = runtime.cudaGetErrorString(error)[1].decode(errors="replace")
            return words
    except Exception as problem:  # of a library that it could not load: it raises RuntimeError among others
        return " ".join(str(problem).split())[:200]
    return CudaDevice(
        name=device.name.decode(errors="replace"),
        compute_capability=(int(device.major), int(device.minor)),
        memory_bytes=int(device.totalGlobalMem),
    )
