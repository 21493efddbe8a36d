// The fingerprint of an engine, `config.json`; the same rules as src/ptp/bundle/engine.py.
#include "engine_config.hpp"

#include <nlohmann/json.hpp>

namespace ptp_core {
namespace {

constexpr size_t MAX_PROFILES = 16;
constexpr size_t MAX_FLAGS = 256;
constexpr int64_t MAX_SETTING = int64_t{1} << 40;

Shape read_shape(Fields& range, const std::string& key) {
    Shape shape;
    for (const Json& size : as_list(range.at(key), range.path(key), MAX_RANK)) {
        shape.push_back(as_integer(size, range.path(key), 0, MAX_DIMENSION));
    }
    return shape;
}

Profile read_profile(Fields fields) {
    Profile profile{fields.line("name"), {}};
    for (const auto& [name, value] : fields.dictionary("shapes", MAX_TENSORS).items()) {
        Fields range(value, fields.path("shapes") + "." + name);
        profile.shapes[name] = {read_shape(range, "min"), read_shape(range, "opt"), read_shape(range, "max")};
        range.done();
    }
    fields.done();
    return profile;
}

// Return whether a setting of the builder is on; one that is neither a switch, a number nor a line is refused.
bool is_on(const Json& value) {
    if (value.is_boolean()) return value.get<bool>();
    if (value.is_number()) return as_integer(value, "flags", -MAX_SETTING, MAX_SETTING) != 0;
    return !as_line(value, "flags").empty();
}

EngineConfig read_config(const Json& data) {
    Fields fields(data, "");
    EngineConfig config;
    if (const Json* version = fields.find_any("schema_version")) as_integer(*version, "schema_version", 1, 1);
    config.kind = fields.choice("kind", {"visual", "embed", "llm"});
    config.backend = fields.choice("backend", {"tensorrt", "tensorrt-rtx"});
    config.target = fields.line("target");
    const Json& capability = as_list(fields.at("compute_capability"), "compute_capability", 2);
    if (capability.size() != 2) throw SchemaProblem("compute_capability", "is not major and minor");
    config.compute_capability = {as_integer(capability[0], "compute_capability", 0, 1000),
                                 as_integer(capability[1], "compute_capability", 0, 1000)};
    config.builder = fields.line("builder");
    config.precision = fields.choice("precision", {"fp32", "fp16"});
    for (const Json& profile : as_list(fields.at("profiles"), "profiles", MAX_PROFILES)) {
        config.profiles.push_back(read_profile(Fields(profile, "profiles." + std::to_string(config.profiles.size()))));
    }
    if (config.profiles.empty()) throw SchemaProblem("profiles", "is empty");
    config.max_context = fields.integer("max_context", 1, MAX_POSITIONS);
    config.inputs = read_tensors(fields.at("inputs"), "inputs");
    config.outputs = read_tensors(fields.at("outputs"), "outputs");
    config.graph = fields.relative_path("graph");
    for (const auto& [name, entry] : fields.dictionary("graph_files", MAX_FILES).items()) {
        as_relative_path(Json(name), "graph_files");
        config.graph_files[name] = read_file_entry(Fields(entry, "graph_files." + name));
    }
    config.engine = read_file_entry(fields.object("engine"));
    for (const auto& [name, value] : fields.dictionary("flags", MAX_FLAGS).items()) {
        if (is_on(value)) config.flags.insert(name);
    }
    fields.number("seconds");
    for (const char* record : {"peak_bytes", "estimated_bytes"}) fields.integer(record, 0, MAX_FILE_BYTES);
    fields.done();
    return config;
}

}  // namespace

EngineConfig parse_engine_config(std::string_view text) { return read_config(parse_strict_json(text)); }

}  // namespace ptp_core
