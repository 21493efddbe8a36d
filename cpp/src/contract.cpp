// What the graphs must look like by the manifest's other facts; the same rules as src/ptp/bundle/contract.py.
#include <algorithm>
#include <set>

#include "error.hpp"
#include "manifest.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr int64_t MAX_BATCH = 64;

using Names = std::set<std::string>;
using Shapes = std::map<std::string, Shape>;

void compare_names(const GraphSpec& graph, const std::string& kind, const std::vector<TensorSpec>& specs,
                   const Names& expected, std::vector<std::string>& problems) {
    Names found;
    for (const TensorSpec& spec : specs) found.insert(spec.name);
    const std::string place = " in " + graph.file;
    for (const std::string& name : expected) {
        if (!found.count(name)) problems.push_back("no " + kind + " " + name + place);
    }
    for (const std::string& name : found) {
        if (!expected.count(name)) problems.push_back("unknown " + kind + " " + name + place);
    }
}

void check_doubles(const GraphSpec& graph, std::vector<std::string>& problems) {
    for (const auto& [kind, specs] : {std::pair{"input ", &graph.inputs}, std::pair{"output ", &graph.outputs}}) {
        Names found, twice;
        for (const TensorSpec& spec : *specs) {
            if (!found.insert(spec.name).second) twice.insert(spec.name);
        }
        for (const std::string& name : twice) problems.push_back(kind + name + " twice in " + graph.file);
    }
}

void check_vision_names(const Manifest& manifest, std::vector<std::string>& problems) {
    Names inputs = {"pixel_values", "image_sizes", "tile_grid"};
    Names outputs = {"image_features", "image_positions", "num_valid", "tile_budgets", "packed_length"};
    if (manifest.takes_question()) {
        inputs.insert({"alpha", "prompt_embeds", "prompt_mask", "question_mask", "prefix_length"});
        outputs.insert("effective_alpha");
    }
    if (manifest.pruning.keep_range) inputs.insert("num_kept");
    compare_names(manifest.vision_encoder, "input", manifest.vision_encoder.inputs, inputs, problems);
    compare_names(manifest.vision_encoder, "output", manifest.vision_encoder.outputs, outputs, problems);
}

Shapes vision_shapes(const Manifest& manifest) {
    const Tiling& tiling = manifest.tiling;
    const int64_t longest = manifest.prompting.max_prompt, size = tiling.tile_size, batch = manifest.batch();
    const int64_t hidden = manifest.language_model.hidden_size;
    const int64_t kept = manifest.pruning.keep_range ? ANY : manifest.pruning.num_kept;
    return {
        {"pixel_values", {batch, tiling.max_tiles, 3, size, size}},
        {"image_sizes", {batch, 2}},
        {"tile_grid", {batch, 2}},
        {"alpha", {batch}},
        {"prompt_embeds", {batch, longest, hidden}},
        {"prompt_mask", {batch, longest}},
        {"question_mask", {batch, longest}},
        {"prefix_length", {batch}},
        {"num_kept", {1}},
        {"image_features", {batch, kept, hidden}},
        {"image_positions", {batch, kept}},
        {"num_valid", {batch}},
        {"tile_budgets", {batch, tiling.max_tiles}},
        {"packed_length", {batch}},
        {"effective_alpha", {batch}},
    };
}

void check_shapes(const GraphSpec& graph, const Shapes& expected, std::vector<std::string>& problems) {
    for (const auto* specs : {&graph.inputs, &graph.outputs}) {
        for (const TensorSpec& spec : *specs) {
            const auto wanted = expected.find(spec.name);
            if (wanted == expected.end() || wanted->second == spec.shape) continue;
            problems.push_back(spec.name + " is " + describe(spec.shape) + " in " + graph.file + " and " +
                               describe(wanted->second) + " by the other facts");
        }
    }
}

void check_decoder(const Manifest& manifest, std::vector<std::string>& problems) {
    const LanguageModel& model = manifest.language_model;
    Shapes shapes = {
        {"inputs_embeds", {ANY, ANY, model.hidden_size}},
        {"attention_mask", {ANY, ANY}},
        {"position_ids", {ANY, ANY}},
        {"logits", {ANY, 1, model.vocab_size}},
        {"next_tokens", {ANY, 1}},
        {"next_attention_mask", {ANY, ANY}},
        {"next_position_ids", {ANY, 1}},
    };
    const auto count = [&](const std::string& prefix, const std::vector<TensorSpec>& specs) {
        int64_t found = 0;
        for (const TensorSpec& spec : specs) {
            if (!starts_with(spec.name, prefix)) continue;
            shapes[spec.name] = {ANY, model.num_kv_heads, ANY, model.head_dim};
            ++found;
        }
        if (found != 2 * model.num_layers) {
            problems.push_back(std::to_string(found) + " tensors " + prefix + "* for " +
                               std::to_string(model.num_layers) + " layers");
        }
    };
    count("past_key_values.", manifest.decoder.inputs);
    count("present.", manifest.decoder.outputs);
    check_shapes(manifest.decoder, shapes, problems);
}

// One step of decoding feeds outputs back into inputs, which must be of the same type.
void check_loops(const Manifest& manifest, std::vector<std::string>& problems) {
    std::map<std::string, TensorSpec> inputs;
    for (const auto* specs : {&manifest.embed_tokens.inputs, &manifest.decoder.inputs}) {
        for (const TensorSpec& spec : *specs) inputs[spec.name] = spec;
    }
    for (const auto* specs : {&manifest.embed_tokens.outputs, &manifest.decoder.outputs}) {
        for (const TensorSpec& spec : *specs) {
            const auto input = inputs.find(becomes(spec.name));
            if (input == inputs.end() || input->second.dtype == spec.dtype) continue;
            problems.push_back(spec.name + " is " + dtype_name(spec.dtype) + " and " + input->first +
                               ", which it becomes, " + dtype_name(input->second.dtype));
        }
    }
}

}  // namespace

std::vector<std::string> disagreements(const Manifest& manifest) {
    std::vector<std::string> problems;
    if (manifest.batch() > MAX_BATCH) {
        problems.push_back("batch " + std::to_string(manifest.batch()) + " is more than " + std::to_string(MAX_BATCH));
    }
    for (const GraphSpec* graph : {&manifest.vision_encoder, &manifest.embed_tokens, &manifest.decoder}) {
        if (!manifest.files.count(graph->file))
            problems.push_back("graph file " + cited(graph->file) + " is not among the files");
        if (!starts_with(graph->file, GRAPH_FOLDER))
            problems.push_back("graph file " + cited(graph->file) + " is not in " + GRAPH_FOLDER);
    }
    for (const GraphSpec* graph : {&manifest.vision_encoder, &manifest.embed_tokens, &manifest.decoder})
        check_doubles(*graph, problems);
    check_vision_names(manifest, problems);
    check_shapes(manifest.vision_encoder, vision_shapes(manifest), problems);
    check_shapes(manifest.embed_tokens,
                 {{"input_ids", {ANY, ANY}}, {"inputs_embeds", {ANY, ANY, manifest.language_model.hidden_size}}},
                 problems);
    check_decoder(manifest, problems);
    check_loops(manifest, problems);
    return problems;
}

std::string becomes(const std::string& output) {
    constexpr std::string_view PRESENT = "present.", NEXT = "next_";
    if (output == "next_tokens") return "input_ids";
    if (starts_with(output, PRESENT)) return "past_key_values." + output.substr(PRESENT.size());
    return starts_with(output, NEXT) ? output.substr(NEXT.size()) : output;
}

void require_names(const GraphSpec& spec, const std::vector<std::string>& inputs,
                   const std::vector<std::string>& outputs) {
    const auto names = [](const std::vector<TensorSpec>& specs) {
        Names found;
        for (const TensorSpec& tensor : specs) found.insert(tensor.name);
        return found;
    };
    const Names found_inputs = names(spec.inputs), found_outputs = names(spec.outputs);
    std::vector<std::string> problems;
    for (const std::string& name : found_inputs) {
        if (std::find(inputs.begin(), inputs.end(), name) == inputs.end()) problems.push_back("unknown input " + name);
    }
    for (const std::string& name : inputs) {
        if (!found_inputs.count(name)) problems.push_back("no input " + name);
    }
    for (const std::string& name : outputs) {
        if (!found_outputs.count(name)) problems.push_back("no output " + name);
    }
    if (problems.empty()) return;
    throw Error(PTP_ERROR_BUNDLE, "this version cannot run " + spec.file)
        .got(join(problems, ", ", 8))
        .advise("export the bundle with this version");
}

}  // namespace ptp_core
