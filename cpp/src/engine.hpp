// Which engine of a bundle fits this machine, and whether it still is what its fingerprint says
// (src/ptp/bundle/engine.py, runtime/backends/engine_files.py).
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"
#include "graph.hpp"

namespace ptp_core {

struct ShapeRange {
    Shape min, opt, max;
};

struct Profile {
    std::string name;
    std::map<std::string, ShapeRange> shapes;
};

// The whole of an engine's `config.json` that a runtime needs.
struct EngineConfig {
    std::string kind, backend, target, builder, precision, graph;
    std::pair<int64_t, int64_t> compute_capability;
    std::vector<Profile> profiles;
    int64_t max_context;
    std::vector<TensorSpec> inputs, outputs;
    std::map<std::string, FileEntry> graph_files;
    std::set<std::string> flags;  // those that are on
    FileEntry engine;
};

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
};

// Return the engine of a graph that fits a machine; `target` empty: the one for its compute capability. Throws Error.
EngineFile find_engine(const Bundle& bundle, GraphKind kind, const Machine& machine, const std::string& target);

}  // namespace ptp_core
