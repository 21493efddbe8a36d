// Memory of a CUDA device, allocated once and used again, and the one stream that all work on it is queued on.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "error.hpp"

namespace ptp_core {

inline void check_cuda(cudaError_t error, const char* what) {
    if (error != cudaSuccess)
        throw Error(PTP_ERROR_BACKEND, std::string(what) + " failed").got(cudaGetErrorString(error));
}

class DeviceMemory : public std::enable_shared_from_this<DeviceMemory> {
public:
    // A piece of device memory; dropping the last reference makes it free for the next that asks for its size. What is
    // queued still reads it, and will have when anything queued later writes it: there is one stream.
    using Buffer = std::shared_ptr<void>;

    // Makes the device current for the calling thread; CUDA keeps that per thread, and the application may use another.
    class Use {
    public:
        explicit Use(int device) {
            check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
            if (before_ != device) check_cuda(cudaSetDevice(device), "cudaSetDevice");
            changed_ = before_ != device;
        }
        ~Use() {
            if (changed_) cudaSetDevice(before_);
        }
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

    private:
        int before_ = 0;
        bool changed_ = false;
    };

    // `device` is current.
    explicit DeviceMemory(int device) : device_(device) {
        check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    }
    ~DeviceMemory() {
        for (auto& [size, addresses] : idle_) {
            for (void* address : addresses) cudaFree(address);
        }
        cudaStreamDestroy(stream_);
    }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    Use use() const { return Use(device_); }
    cudaStream_t stream() const { return stream_; }
    // Held by whoever queues work.
    std::recursive_mutex& turn() { return turn_; }

    // Return a buffer of `size` bytes, at least 1, that nobody else holds.
    Buffer take(size_t size) {
        void* address = nullptr;
        {
            const std::lock_guard lock(idle_mutex_);
            auto& idle = idle_[size];
            if (idle.empty()) {
                check_cuda(cudaMalloc(&address, size), "cudaMalloc");
            } else {
                address = idle.back();
                idle.pop_back();
            }
        }
        return {address, [memory = shared_from_this(), size](void* free) { memory->give_back(free, size); }};
    }

    // Queue a copy from the host, which must stay as it is until `synchronise`.
    void upload(const Buffer& buffer, const void* data, size_t size) {
        if (size)
            check_cuda(cudaMemcpyAsync(buffer.get(), data, size, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    }

    // Copy to the host, once all that was queued is done.
    void download(void* data, const Buffer& buffer, size_t size) {
        const Use current = use();
        const std::lock_guard lock(turn_);
        if (size)
            check_cuda(cudaMemcpyAsync(data, buffer.get(), size, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
        synchronise();
    }

    void synchronise() { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

private:
    void give_back(void* address, size_t size) {
        const std::lock_guard lock(idle_mutex_);
        idle_[size].push_back(address);
    }

    int device_;
    cudaStream_t stream_ = nullptr;
    std::recursive_mutex turn_;
    std::mutex idle_mutex_;
    std::map<size_t, std::vector<void*>> idle_;
};

}  // namespace ptp_core
