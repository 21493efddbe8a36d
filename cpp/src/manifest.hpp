// The manifest of a bundle, `ptp_config.json`: the facts that this runtime needs, validated like src/ptp/bundle.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json.hpp"
#include "ptp.h"

namespace ptp_core {

constexpr const char* MANIFEST_NAME = "ptp_config.json";
constexpr const char* GRAPH_FOLDER = "onnx/";
constexpr int64_t MAX_POSITIONS = int64_t{1} << 31;
constexpr int64_t MAX_FILE_BYTES = int64_t{1} << 40;
constexpr size_t MAX_FILES = 1 << 12;
constexpr size_t MAX_TENSORS = 4096;
constexpr size_t MAX_RANK = 8;  // of any tensor that an engine takes
constexpr int64_t ANY = -1;  // stands for a dimension that is named at run time

using Shape = std::vector<int64_t>;
using Grid = std::pair<int64_t, int64_t>;  // rows, columns

struct TensorSpec {
    std::string name;
    ptp_dtype dtype;
    Shape shape;
};

struct GraphSpec {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
};

struct FileEntry {
    uint64_t bytes;
    std::string sha256;
};

struct Levels {
    int64_t thumbnail, crops, newline;
    int64_t total() const { return thumbnail + crops + newline; }
};

struct KeepRange {
    double min, max;
    int64_t min_kept, max_kept;
};

struct Pruning {
    double keep;
    std::optional<KeepRange> keep_range;
    Levels levels;
    int64_t num_kept;
    std::string instruction;
    double alpha;  // PTP_ALPHA_AUTO for "auto"
    std::string thumbnail, newline;
    bool compact_positions;
};

struct Tiling {
    int64_t tile_size, tokens_per_side, max_tiles;
    std::vector<Grid> grids;
    std::string resample;
    double rescale_factor;
    std::array<double, 3> mean, std;

    int64_t tokens_per_tile() const { return tokens_per_side * tokens_per_side; }
    // The most tokens of an unpruned sequence: thumbnail and the largest grid's rows, a newline after each.
    int64_t longest() const;
};

// The chat template's text around the image and the question. What the manifest holds beside it, for system prompts and
// further turns, is validated and not kept: this runtime asks one question.
struct ChatFormat {
    std::string trim, before_image, before_question, after_question;
};

struct Prompting {
    std::string image_token;
    int64_t image_token_id;
    bool add_special_tokens;
    std::vector<int64_t> eos_token_ids;
    int64_t max_prompt;
    ChatFormat chat;
};

struct LanguageModel {
    int64_t num_layers, num_kv_heads, head_dim, hidden_size, vocab_size, max_position_embeddings;
};

struct Manifest {
    std::string model_id, precision;
    Pruning pruning;
    Tiling tiling;
    Prompting prompting;
    LanguageModel language_model;
    GraphSpec vision_encoder, embed_tokens, decoder;
    std::optional<GraphSpec> decoder_onnxruntime, vision_encoder_onnxruntime;  // Python's runtime alone takes them
    std::map<std::string, FileEntry> files;
    std::string vectors;

    int64_t batch() const;  // B, images of one call of the vision graph
    bool takes_question() const { return pruning.instruction != "none"; }

    // Parse and validate the text of a `ptp_config.json`; throws Error.
    static Manifest from_json(std::string_view text);
};

const char* dtype_name(ptp_dtype dtype);
size_t dtype_size(ptp_dtype dtype);
ptp_dtype dtype_named(const std::string& name, const std::string& path);

// Return "float32 [1, 5, ?]".
std::string describe(const TensorSpec& spec);
std::string describe(const Shape& shape);

std::vector<TensorSpec> read_tensors(const Json& list, const std::string& path);
FileEntry read_file_entry(Fields entry);

// Return every graph whose place and every tensor whose shape contradicts the manifest's other facts.
std::vector<std::string> disagreements(const Manifest& manifest);

// Return the input that an output of the embedding or the decoder is fed to in the next step of decoding; an output
// that is fed to nothing, such as `logits`, is returned as it is.
std::string becomes(const std::string& output);

// Refuse a graph with inputs that the runtime does not know or without outputs that it needs; throws Error.
void require_names(const GraphSpec& spec, const std::vector<std::string>& inputs,
                   const std::vector<std::string>& outputs);

}  // namespace ptp_core
