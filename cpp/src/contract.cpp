// What the graphs must look like by the manifest's other facts; the same rules as src/ptp/bundle/contract.py.
#include <algorithm>
#include <set>

#include "error.hpp"
#include "manifest.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr int64_t MAX_BATCH = 64;
constexpr int64_t MAX_GRAPH_BYTES = int64_t{1} << 32;  // inputs and outputs of one call of the vision graph
constexpr int64_t MAX_TOKEN_BYTES = 1 << 26;           // of the embedding or the decoder for one token

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

void check_decoder(const GraphSpec& decoder, int64_t batch, const LanguageModel& model,
                   std::vector<std::string>& problems) {
    Shapes shapes = {
        {"inputs_embeds", {batch, ANY, model.hidden_size}},
        {"attention_mask", {batch, ANY}},
        {"position_ids", {batch, ANY}},
        {"logits", {batch, 1, model.vocab_size}},
        {"next_tokens", {batch, 1}},
        {"next_attention_mask", {batch, ANY}},
        {"next_position_ids", {batch, 1}},
    };
    const auto count = [&](const std::string& prefix, const std::vector<TensorSpec>& specs) {
        int64_t found = 0;
        for (const TensorSpec& spec : specs) {
            if (!starts_with(spec.name, prefix)) continue;
            shapes[spec.name] = {batch, model.num_kv_heads, ANY, model.head_dim};
            ++found;
        }
        if (found != 2 * model.num_layers) {
            problems.push_back(std::to_string(found) + " tensors " + prefix + "* for " +
                               std::to_string(model.num_layers) + " layers");
        }
    };
    count("past_key_values.", decoder.inputs);
    count("present.", decoder.outputs);
    check_shapes(decoder, shapes, problems);
}

// One step of decoding feeds outputs back into inputs, which must be of the same type.
void check_loops(const GraphSpec& embed, const GraphSpec& decoder, std::vector<std::string>& problems) {
    std::map<std::string, TensorSpec> inputs;
    for (const auto* specs : {&embed.inputs, &decoder.inputs}) {
        for (const TensorSpec& spec : *specs) inputs[spec.name] = spec;
    }
    for (const auto* specs : {&embed.outputs, &decoder.outputs}) {
        for (const TensorSpec& spec : *specs) {
            const auto input = inputs.find(becomes(spec.name));
            if (input == inputs.end() || input->second.dtype == spec.dtype) continue;
            problems.push_back(spec.name + " is " + dtype_name(spec.dtype) + " and " + input->first +
                               ", which it becomes, " + dtype_name(input->second.dtype));
        }
    }
}

// What says of tokens that there are more than an image or the vocabulary has.
void check_tokens(const Manifest& manifest, std::vector<std::string>& problems) {
    const Pruning& pruning = manifest.pruning;
    const Tiling& tiling = manifest.tiling;
    const auto& ends = manifest.prompting.eos_token_ids;
    const int64_t tile = tiling.tokens_per_tile(), visual = tiling.max_tiles * tile;
    const int64_t last = manifest.language_model.vocab_size - 1;
    int64_t rows = 0;
    for (const Grid& grid : tiling.grids) rows = std::max(rows, grid.first * tiling.tokens_per_side);
    const auto compare = [&](const std::string& what, int64_t found, int64_t most) {
        if (found > most)
            problems.push_back(what + " is " + std::to_string(found) + ", more than " + std::to_string(most));
    };
    compare("the thumbnail's level", pruning.levels.thumbnail, tile);
    compare("the levels of thumbnail and crops", pruning.levels.thumbnail + pruning.levels.crops, visual);
    compare("the newlines' level", pruning.levels.newline, rows);
    compare("max_kept", pruning.keep_range ? pruning.keep_range->max_kept : 0, visual + rows);
    compare("image_token_id", manifest.prompting.image_token_id, last);
    compare("an end token's id", ends.empty() ? 0 : *std::max_element(ends.begin(), ends.end()), last);
}

// Refuse graphs whose inputs and outputs would fill the memory; a size of run time counts as `named`.
void check_bytes(const GraphSpec& graph, int64_t limit, int64_t named, const std::string& unit,
                 std::vector<std::string>& problems) {
    double bytes = 0;  // of 4096 tensors of 2^30 elements times a number of run time: exact enough, and never too large
    for (const auto* specs : {&graph.inputs, &graph.outputs}) {
        for (const TensorSpec& spec : *specs) {
            auto size = static_cast<double>(dtype_size(spec.dtype));
            for (const int64_t side : spec.shape) size *= static_cast<double>(side == ANY ? named : side);
            bytes += size;
        }
    }
    if (bytes > static_cast<double>(limit))
        problems.push_back(graph.file + " takes and returns more than " + std::to_string(limit) + " bytes" + unit);
}

bool same_tensors(const std::vector<TensorSpec>& one, const std::vector<TensorSpec>& other) {
    return std::equal(one.begin(), one.end(), other.begin(), other.end(), [](const auto& a, const auto& b) {
        return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape;
    });
}

std::vector<const GraphSpec*> all_graphs(const Manifest& manifest) {
    std::vector<const GraphSpec*> graphs = {&manifest.vision_encoder, &manifest.embed_tokens, &manifest.decoder};
    for (const auto* graph : {&manifest.decoder_onnxruntime, &manifest.vision_encoder_onnxruntime}) {
        if (*graph) graphs.push_back(&**graph);
    }
    return graphs;
}

void check_all_bytes(const Manifest& manifest, std::vector<std::string>& problems) {
    const int64_t kept = manifest.pruning.keep_range ? manifest.pruning.keep_range->max_kept : 1;
    check_bytes(manifest.vision_encoder, MAX_GRAPH_BYTES, kept, "", problems);
    if (const auto& twin = manifest.vision_encoder_onnxruntime) check_bytes(*twin, MAX_GRAPH_BYTES, kept, "", problems);
    check_bytes(manifest.embed_tokens, MAX_TOKEN_BYTES, 1, " a token", problems);
    check_bytes(manifest.decoder, MAX_TOKEN_BYTES, 1, " a token", problems);
    if (const auto& fused = manifest.decoder_onnxruntime) check_bytes(*fused, MAX_TOKEN_BYTES, 1, " a token", problems);
}

}  // namespace

std::vector<std::string> disagreements(const Manifest& manifest) {
    std::vector<std::string> problems;
    if (manifest.batch() > MAX_BATCH) {
        problems.push_back("batch " + std::to_string(manifest.batch()) + " is more than " + std::to_string(MAX_BATCH));
    }
    const auto graphs = all_graphs(manifest);
    for (const GraphSpec* graph : graphs) {
        if (!manifest.files.count(graph->file))
            problems.push_back("graph file " + cited(graph->file) + " is not among the files");
    }
    for (const GraphSpec* graph : graphs) {
        if (!starts_with(graph->file, GRAPH_FOLDER))
            problems.push_back("graph file " + cited(graph->file) + " is not in " + GRAPH_FOLDER);
    }
    if (!manifest.files.count(manifest.vectors))
        problems.push_back("vectors " + cited(manifest.vectors) + " is not among the files");
    for (const GraphSpec* graph : graphs) check_doubles(*graph, problems);
    check_vision_names(manifest, problems);
    check_shapes(manifest.vision_encoder, vision_shapes(manifest), problems);
    const GraphSpec& vision = manifest.vision_encoder;
    if (const auto& twin = manifest.vision_encoder_onnxruntime;
        twin && !(same_tensors(twin->inputs, vision.inputs) && same_tensors(twin->outputs, vision.outputs))) {
        problems.push_back(twin->file + " has other inputs or outputs than " + vision.file);
    }
    check_shapes(manifest.embed_tokens,
                 {{"input_ids", {ANY, ANY}}, {"inputs_embeds", {ANY, ANY, manifest.language_model.hidden_size}}},
                 problems);
    check_decoder(manifest.decoder, ANY, manifest.language_model, problems);
    check_loops(manifest.embed_tokens, manifest.decoder, problems);
    if (const auto& fused = manifest.decoder_onnxruntime) {
        check_decoder(*fused, 1, manifest.language_model, problems);
        check_loops(manifest.embed_tokens, *fused, problems);
    }
    check_tokens(manifest, problems);
    check_all_bytes(manifest, problems);
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
