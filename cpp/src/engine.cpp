#include "engine.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "hashes.hpp"
#include "text.hpp"

namespace fs = std::filesystem;

namespace ptp_core {
namespace {

constexpr const char* CONFIG_NAME = "config.json";
constexpr uint64_t MAX_CONFIG_BYTES = 1 << 22;

// Settings in a fingerprint, and the options of `ptp build` that they come from.
constexpr std::array<std::pair<const char*, const char*>, 3> BUILD_OPTIONS = {{
    {"WEIGHT_STREAMING", "--weight-streaming"},
    {"VERSION_COMPATIBLE", "--version-compatible"},
    {"HARDWARE_COMPATIBILITY", "--hardware-compatible"},
}};

// Quote a word for a shell where it needs it.
std::string shell_word(const std::string& word) {
    constexpr const char* PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_";
    if (!word.empty() && word.find_first_not_of(PLAIN) == std::string::npos) return word;
    std::string text = "'";
    for (const char c : word) text += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
    return text + "'";
}

EngineConfig read_engine_config(const fs::path& folder) {
    const fs::path path = folder / CONFIG_NAME, target = folder.parent_path(), backend = target.parent_path();
    const std::string bundle = backend.parent_path().parent_path().string();
    const std::string advice = "build the engine again: ptp build " + shell_word(bundle) + " --backend " +
                               shell_word(backend.filename().string()) + " --target " +
                               shell_word(target.filename().string()) + " --force";
    const std::string text = read_file(path, MAX_CONFIG_BYTES, PTP_ERROR_BUNDLE);
    try {
        return parse_engine_config(text);
    } catch (const SchemaProblem& problem) {
        throw Error(PTP_ERROR_BUNDLE, path.string() + " is not an engine's fingerprint").got(problem.what()).advise(advice);
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw Error(PTP_ERROR_BUNDLE, path.string() + " is not JSON").got(error.what()).advise(advice);
    }
}

std::string engine_kind(GraphKind graph) {
    switch (graph) {
        case GraphKind::vision: return "visual";
        case GraphKind::embed: return "embed";
        case GraphKind::decoder: return "llm";
    }
    throw Error(PTP_ERROR_CONFIG, "no such graph");
}

std::string dotted(const std::pair<int64_t, int64_t>& version) {
    return std::to_string(version.first) + "." + std::to_string(version.second);
}

std::string build_command(const Bundle& bundle, const std::string& backend) {
    return "ptp build " + shell_word(bundle.folder.string()) + " --backend " + backend;
}

std::string rebuild_command(const Bundle& bundle, const std::string& backend, const std::string& target,
                            const EngineConfig& config) {
    std::string options = " --max-context " + std::to_string(config.max_context);
    for (const auto& [flag, option] : BUILD_OPTIONS) {
        if (config.flags.count(flag)) options += std::string(" ") + option;
    }
    return build_command(bundle, backend) + " --target " + shell_word(target) + options + " --force";
}

fs::path engine_folder(const Bundle& bundle, const std::string& backend, const std::string& target,
                       const std::string& kind) {
    return bundle.folder / "engines" / backend / target / kind;
}

std::vector<std::string> targets_there(const Bundle& bundle, const std::string& backend, const std::string& kind) {
    std::vector<std::string> there;
    std::error_code problem, unknown;
    for (fs::directory_iterator item(bundle.folder / "engines" / backend, problem), end; !problem && item != end;
         item.increment(problem)) {
        const std::string name = item->path().filename().string();  // one with a dot is still being built
        if (name[0] != '.' && fs::is_regular_file(item->path() / kind / CONFIG_NAME, unknown)) there.push_back(name);
    }
    std::sort(there.begin(), there.end());
    return there;
}

// What the bundle's build.sh has built has no fingerprint, and only --force replaces it.
bool has_other_engines(const Bundle& bundle, const std::string& backend, const std::string& kind) {
    std::error_code problem, unknown;
    for (fs::directory_iterator item(bundle.folder / "engines" / backend, problem), end; !problem && item != end;
         item.increment(problem)) {
        if (fs::exists(item->path() / kind, unknown)) return true;
    }
    return false;
}

std::string choose_target(const Bundle& bundle, const std::string& kind, const Machine& machine,
                          const std::string& target) {
    const std::string command = build_command(bundle, machine.backend);
    const auto there = targets_there(bundle, machine.backend, kind);
    if (there.empty()) {
        throw Error(PTP_ERROR_BACKEND, bundle.folder.string() + " has no " + kind + " engine for " + machine.backend)
            .advise("build it: " + command + (has_other_engines(bundle, machine.backend, kind) ? " --force" : ""));
    }
    if (!target.empty()) {
        if (std::find(there.begin(), there.end(), target) != there.end()) return target;
        throw Error(PTP_ERROR_CONFIG, "there is no " + kind + " engine for target " + cited(target))
            .expected(join(there, " or ", there.size()));
    }
    std::vector<std::string> fitting, found;
    for (const std::string& name : there) {
        const auto capability =
            read_engine_config(engine_folder(bundle, machine.backend, name, kind)).compute_capability;
        if (capability == machine.compute_capability) fitting.push_back(name);
        found.push_back(name + " of compute capability " + dotted(capability));
    }
    if (fitting.empty()) {
        throw Error(PTP_ERROR_BACKEND, "no " + kind + " engine was built for this GPU")
            .got(join(found, ", ", found.size()))
            .expected(dotted(machine.compute_capability) + ", that of " + machine.device)
            .advise("build one: " + command);
    }
    if (fitting.size() > 1) {
        throw Error(PTP_ERROR_CONFIG, "several engines fit this GPU")
            .got(join(fitting, ", ", fitting.size()))
            .advise("choose one with target");
    }
    return fitting.front();
}

// The Python module may name its version without the last number.
bool same_version(const std::string& one, const std::string& other) {
    return starts_with(one + ".", other + ".") || starts_with(other + ".", one + ".");
}

// Return all that a fingerprint should say otherwise.
std::vector<std::string> differences(const Bundle& bundle, const GraphSpec& spec, const std::string& kind,
                                     const Machine& machine, const std::string& target, const EngineConfig& config) {
    std::vector<std::string> problems;
    const auto compare = [&](const std::string& what, const std::string& found, const std::string& wanted, bool same) {
        if (!same) problems.push_back(what + " " + found + " instead of " + wanted);
    };
    const auto require = [&](const std::string& what, const std::string& found, const std::string& wanted) {
        compare(what, found, wanted, found == wanted);
    };
    require("kind", config.kind, kind);
    require("backend", config.backend, machine.backend);
    require("target", config.target, target);
    require("graph", config.graph, spec.file);
    require("compute capability", dotted(config.compute_capability), dotted(machine.compute_capability));
    compare("version of " + machine.backend, config.builder, machine.version,
            same_version(config.builder, machine.version));
    require("precision", config.precision, bundle.manifest.precision);
    if (!config.graph_files.count(spec.file)) problems.push_back("no hash of " + spec.file);
    for (const auto& [name, entry] : config.graph_files) {
        const auto own = bundle.manifest.files.find(name);
        const bool same = own != bundle.manifest.files.end() && own->second.bytes == entry.bytes &&
                          own->second.sha256 == entry.sha256;
        if (!same) problems.push_back("built from another " + name);
    }
    return problems;
}

}  // namespace

EngineFile find_engine(const Bundle& bundle, GraphKind graph, const Machine& machine, const std::string& wanted) {
    const std::string kind = engine_kind(graph);
    const GraphSpec& spec = spec_of(bundle.manifest, graph);
    const std::string target = choose_target(bundle, kind, machine, wanted);
    const fs::path folder = engine_folder(bundle, machine.backend, target, kind);
    EngineConfig config = read_engine_config(folder);
    const std::string rebuild = rebuild_command(bundle, machine.backend, target, config);
    const std::string name = config.kind + ".engine";
    EngineFile file{folder / name, std::move(config), rebuild, {}};
    if (const auto problems = differences(bundle, spec, kind, machine, target, file.config); !problems.empty()) {
        throw Error(PTP_ERROR_BACKEND, "the engine in " + folder.string() + " does not fit")
            .got(join(problems, ", ", problems.size()))
            .advise(file.config.compute_capability == machine.compute_capability
                        ? "build it again: " + rebuild
                        : "build one for this GPU: " + build_command(bundle, machine.backend));
    }
    HashCache hashes;
    file.state = verify_file(file.path, file.config.engine, bundle.folder, hashes, "build it again: " + rebuild);
    hashes.save();
    return file;
}

}  // namespace ptp_core
