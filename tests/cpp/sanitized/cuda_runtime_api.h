// The few CUDA functions that libptp calls, on host memory.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
using cudaStream_t = struct CUstream_st*;
constexpr unsigned cudaStreamNonBlocking = 1;

struct cudaDeviceProp {
    char name[256];
    int major, minor;
};

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorNoDevice ? "no device" : "out of memory";
}

// STAND_IN_DEVICES says how many devices there are.
inline cudaError_t cudaGetDeviceCount(int* count) {
    const char* devices = std::getenv("STAND_IN_DEVICES");
    *count = devices ? std::atoi(devices) : 0;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* device, int) {
    *device = {"Stand-in", 8, 7};
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline cudaError_t cudaMalloc(void** address, size_t size) {
    *address = std::malloc(size);
    return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* address) {
    std::free(address);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t size, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(target, source, size);
    return cudaSuccess;
}
