// The fingerprint of an engine, `config.json`.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "manifest.hpp"

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

// Return the fingerprint that a text is; throws SchemaProblem or another std::exception.
EngineConfig parse_engine_config(std::string_view text);

}  // namespace ptp_core
