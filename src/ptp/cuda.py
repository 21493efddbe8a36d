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
    try:
        from cuda.bindings import runtime

        error, device = runtime.cudaGetDeviceProperties(0)
    except Exception:  # no package, or no library that it could load: it raises RuntimeError among others
        return None
    if error != runtime.cudaError_t.cudaSuccess:
        return None
    return CudaDevice(
        name=device.name.decode(errors="replace"),
        compute_capability=(int(device.major), int(device.minor)),
        memory_bytes=int(device.totalGlobalMem),
    )
