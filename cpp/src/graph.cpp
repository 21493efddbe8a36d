#include "graph.hpp"

#include <map>

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

size_t index_of(const std::vector<TensorSpec>& specs, const std::string& name, const std::string& file) {
    for (size_t i = 0; i < specs.size(); ++i) {
        if (specs[i].name == name) return i;
    }
    throw Error(PTP_ERROR_BUNDLE, file + " has no tensor " + cited(name)).advise("export the bundle again");
}

}  // namespace

size_t Graph::input_index(const std::string& name) const { return index_of(spec_.inputs, name, spec_.file); }

size_t Graph::output_index(const std::string& name) const { return index_of(spec_.outputs, name, spec_.file); }

const GraphSpec& spec_of(const Manifest& manifest, GraphKind kind) {
    switch (kind) {
        case GraphKind::vision: return manifest.vision_encoder;
        case GraphKind::embed: return manifest.embed_tokens;
        case GraphKind::decoder: return manifest.decoder;
    }
    throw Error(PTP_ERROR_CONFIG, "no such graph");
}

void refuse_difference(const std::string& file, const std::string& what, const std::vector<TensorSpec>& got,
                       const std::vector<TensorSpec>& expected, const std::string& advice, const std::string& of) {
    std::map<std::string, std::string> found, wanted;
    for (const TensorSpec& spec : got) found[spec.name] = describe(spec);
    for (const TensorSpec& spec : expected) wanted[spec.name] = describe(spec);
    std::vector<std::string> problems;
    for (const auto& [name, text] : wanted) {
        if (!found.count(name)) problems.push_back(name + " missing");
    }
    for (const auto& [name, text] : found) {
        if (!wanted.count(name)) problems.push_back(name + " extra");
    }
    for (const auto& [name, text] : wanted) {
        const auto other = found.find(name);
        if (other != found.end() && other->second != text)
            problems.push_back(name + " is " + other->second + " instead of " + text);
    }
    if (problems.empty()) return;
    throw Error(PTP_ERROR_BACKEND, "the " + what + " of " + file + " are not those of " + of)
        .got(join(problems, ", ", problems.size()))
        .advise(advice);
}

}  // namespace ptp_core
