// Which engine of a bundle fits this machine, and whether it still is what its fingerprint says
// (src/ptp/bundle/engine.py, runtime/backends/engine_files.py).
#pragma once

#include <filesystem>
#include <string>
#include <utility>

#include "bundle.hpp"
#include "engine_config.hpp"
#include "graph.hpp"

namespace ptp_core {

// What engines are run by: a library of some version, on a device.
struct Machine {
    std::string backend, version, device;
    std::pair<int64_t, int64_t> compute_capability;
};

// An engine that was verified.
struct EngineFile {
    std::filesystem::path path;
    EngineConfig config;
    std::string rebuild;  // the command that builds it again
    FileState state;      // of the file when it was verified
};

// Return the engine of a graph that fits a machine; `target` empty: the one for its compute capability. Throws Error.
EngineFile find_engine(const Bundle& bundle, GraphKind kind, const Machine& machine, const std::string& target);

}  // namespace ptp_core
