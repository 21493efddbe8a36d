// The TensorRT library with its log, and the device that it runs on.
#pragma once

#include <NvInfer.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device_memory.hpp"
#include "engine.hpp"
#include "text.hpp"

namespace ptp_core {

// Prints nothing and remembers the last errors, which say why a call returned null.
class Log : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity != Severity::kINTERNAL_ERROR && severity != Severity::kERROR) return;
        try {
            const std::lock_guard lock(mutex_);
            if (errors_.size() == MAX_REMEMBERED) errors_.erase(errors_.begin());
            errors_.emplace_back(message);
        } catch (...) {
            // no memory to remember it
        }
    }
    std::string text() {
        const std::lock_guard lock(mutex_);
        return join(errors_, " ", MAX_REMEMBERED);
    }
    void clear() {
        const std::lock_guard lock(mutex_);
        errors_.clear();
    }

private:
    static constexpr size_t MAX_REMEMBERED = 3;

    std::mutex mutex_;
    std::vector<std::string> errors_;
};

// Engines keep it alive.
struct TensorRtLibrary {
    Machine machine;
    std::shared_ptr<DeviceMemory> memory;
    Log log;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
};

// Return a graph that runs an engine; throws Error where its tensors are not those of its fingerprint or of `spec`.
std::unique_ptr<Graph> engine_graph(std::shared_ptr<TensorRtLibrary> library,
                                    std::unique_ptr<nvinfer1::ICudaEngine> engine, EngineFile file,
                                    const GraphSpec& spec);

}  // namespace ptp_core
