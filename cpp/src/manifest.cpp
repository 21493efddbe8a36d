#include "manifest.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr int64_t SCHEMA_VERSION = 2;
constexpr int64_t MAX_ELEMENTS = 1 << 30;
constexpr size_t MAX_NAMES = 256;
constexpr size_t MAX_TEXT = 1 << 16;  // characters that go into a prompt as they are

constexpr std::array<const char*, 5> DTYPES = {"float32", "float16", "int64", "int32", "bool"};  // by ptp_dtype
constexpr std::array<size_t, 5> DTYPE_SIZES = {4, 2, 8, 4, 1};

std::optional<KeepRange> read_keep_range(Fields& pruning) {
    const Json* found = pruning.find("keep_range");
    if (!found) return std::nullopt;
    Fields bounds(*found, pruning.path("keep_range"));
    KeepRange range{bounds.number("min"), bounds.number("max"), bounds.integer("min_kept", 1, MAX_DIMENSION),
                    bounds.integer("max_kept", 1, MAX_DIMENSION)};
    if (!(range.min > 0 && range.min <= 1 && range.max > 0 && range.max <= 1)) {
        throw SchemaProblem(pruning.path("keep_range"), "is not within 0 to 1");
    }
    bounds.done();
    return range;
}

double read_alpha(Fields& pruning) {
    const Json& alpha = pruning.at("alpha");
    if (alpha == "auto") return PTP_ALPHA_AUTO;
    const double weight = as_number(alpha, pruning.path("alpha"));
    if (!(weight >= 0 && weight <= 1)) throw SchemaProblem(pruning.path("alpha"), "is not within 0 to 1");
    return weight;
}

Pruning read_pruning(Fields fields) {
    Pruning pruning;
    pruning.keep = fields.number("keep");
    if (!(pruning.keep > 0 && pruning.keep <= 1)) throw SchemaProblem(fields.path("keep"), "is not within 0 to 1");
    pruning.keep_range = read_keep_range(fields);
    Fields levels = fields.object("levels");
    pruning.levels = {levels.integer("thumbnail", 0, MAX_DIMENSION), levels.integer("crops", 0, MAX_DIMENSION),
                      levels.integer("newline", 0, MAX_DIMENSION)};
    levels.done();
    pruning.num_kept = fields.integer("num_kept", 1, MAX_DIMENSION);
    pruning.instruction = fields.choice("instruction", {"none", "similarity", "attention"});
    pruning.alpha = read_alpha(fields);
    fields.integer("saliency_layer", 0, 511);
    fields.choice("region", {"cls_cosine", "thumbnail_attention", "uniform"});
    if (fields.number("region_temperature", 0, 1e6) == 0)
        throw SchemaProblem(fields.path("region_temperature"), "is not above 0");
    pruning.thumbnail = fields.choice("thumbnail", {"ratio", "keep_all", "as_region"});
    pruning.newline = fields.choice("newline", {"keep", "drop"});
    pruning.compact_positions = fields.choice("positions", {"original", "compact"}) == "compact";
    fields.done();
    if (pruning.levels.total() != pruning.num_kept) {
        throw SchemaProblem("pruning", "levels sum to " + std::to_string(pruning.levels.total()) + ", num_kept is " +
                                           std::to_string(pruning.num_kept));
    }
    if (const auto& range = pruning.keep_range;
        range && (pruning.num_kept < range->min_kept || pruning.num_kept > range->max_kept)) {
        throw SchemaProblem("pruning", "num_kept is outside its range");
    }
    return pruning;
}

std::array<double, 3> read_channels(Fields& fields, const std::string& key, double low, double high) {
    const Json& list = as_list(fields.at(key), fields.path(key), 3);
    if (list.size() != 3) throw SchemaProblem(fields.path(key), "has not 3 entries");
    const auto number = [&](size_t i) { return as_number(list[i], fields.path(key), low, high); };
    return {number(0), number(1), number(2)};
}

Tiling read_tiling(Fields fields) {
    Tiling tiling;
    tiling.tile_size = fields.integer("tile_size", 1, 4096);
    tiling.tokens_per_side = fields.integer("tokens_per_side", 1, 1024);
    tiling.max_tiles = fields.integer("max_tiles", 1, MAX_DIMENSION);
    int64_t largest = 0;
    const std::string path = fields.path("grids");
    for (const Json& grid : as_list(fields.at("grids"), path, 1024)) {
        if (as_list(grid, path, 2).size() != 2) throw SchemaProblem(path, "an entry is not rows and columns");
        tiling.grids.emplace_back(as_integer(grid[0], path, 1, 1024), as_integer(grid[1], path, 1, 1024));
        largest = std::max(largest, tiling.grids.back().first * tiling.grids.back().second);
    }
    if (tiling.grids.empty()) throw SchemaProblem(path, "is empty");
    tiling.resample = fields.choice("resample", {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"});
    tiling.rescale_factor = fields.number("rescale_factor", 1e-6, 1e6);
    tiling.mean = read_channels(fields, "mean", -1e6, 1e6);
    tiling.std = read_channels(fields, "std", 1e-6, 1e6);
    fields.done();
    if (tiling.tokens_per_side > tiling.tile_size) throw SchemaProblem("tiling", "there are more tokens than pixels");
    if (1 + largest != tiling.max_tiles) {
        throw SchemaProblem("tiling", "max_tiles is " + std::to_string(tiling.max_tiles) + ", the grids need " +
                                          std::to_string(1 + largest));
    }
    return tiling;
}

std::string bounded_text(Fields& fields, const std::string& key) {
    std::string text = fields.text(key);
    if (character_starts(text).size() - 1 > MAX_TEXT)
        throw SchemaProblem(fields.path(key), "is longer than " + std::to_string(MAX_TEXT) + " characters");
    return text;
}

std::string read_trim(Fields& fields) { return fields.choice("trim", {"none", "both", "end"}); }

ChatFormat read_chat(Fields fields) {
    ChatFormat chat{read_trim(fields), bounded_text(fields, "before_image"), bounded_text(fields, "before_question"),
                    bounded_text(fields, "after_question")};
    if (const Json* found = fields.find("system")) {
        Fields system(*found, fields.path("system"));
        read_trim(system);
        for (const char* key : {"before_system", "before_image"}) bounded_text(system, key);
        system.done();
    }
    if (const Json* found = fields.find("next_turn")) {
        Fields turn(*found, fields.path("next_turn"));
        read_trim(turn);
        for (const char* key : {"before_answer", "before_question"}) bounded_text(turn, key);
        turn.done();
    }
    fields.done();
    return chat;
}

Prompting read_prompting(Fields fields) {
    Prompting prompting;
    prompting.image_token = as_short_text(fields.at("image_token"), fields.path("image_token"));
    if (prompting.image_token.empty()) throw SchemaProblem(fields.path("image_token"), "is empty");
    prompting.image_token_id = fields.integer("image_token_id", 0, MAX_DIMENSION);
    prompting.add_special_tokens = as_bool(fields.at("add_special_tokens"), fields.path("add_special_tokens"));
    for (const Json& token : as_list(fields.at("eos_token_ids"), fields.path("eos_token_ids"), MAX_TENSORS)) {
        prompting.eos_token_ids.push_back(as_integer(token, fields.path("eos_token_ids"), 0, MAX_DIMENSION));
    }
    prompting.max_prompt = fields.integer("max_prompt", 1, MAX_DIMENSION);
    prompting.chat = read_chat(fields.object("chat"));
    fields.done();
    return prompting;
}

LanguageModel read_language_model(Fields fields) {
    LanguageModel model{};
    model.num_layers = fields.integer("num_layers", 1, 512);
    model.num_kv_heads = fields.integer("num_kv_heads", 1, MAX_DIMENSION);
    model.head_dim = fields.integer("head_dim", 1, MAX_DIMENSION);
    model.hidden_size = fields.integer("hidden_size", 1, MAX_DIMENSION);
    model.vocab_size = fields.integer("vocab_size", 1, MAX_DIMENSION);
    model.max_position_embeddings = fields.integer("max_position_embeddings", 1, MAX_POSITIONS);
    fields.done();
    return model;
}

GraphSpec read_graph(Fields fields) {
    GraphSpec graph{fields.relative_path("file"), read_tensors(fields.at("inputs"), fields.path("inputs")),
                    read_tensors(fields.at("outputs"), fields.path("outputs"))};
    fields.done();
    return graph;
}

std::optional<GraphSpec> read_optional_graph(Fields& graphs, const std::string& key) {
    const Json* found = graphs.find(key);
    if (!found) return std::nullopt;
    return read_graph(Fields(*found, graphs.path(key)));
}

// What a value may be that is a line or null.
void check_line_or_null(Fields& fields, const std::string& key) {
    if (const Json& value = fields.at(key); !value.is_null()) as_line(value, fields.path(key));
}

// How the language model's matrices are stored: the graphs say it too.
void check_quantization(Fields& model) {
    const Json* found = model.find("quantization");
    if (!found) return;
    Fields fields(*found, model.path("quantization"));
    fields.choice("weights", {"int8", "int4"});
    if (fields.find_any("lm_head")) fields.choice("lm_head", {"int8", "int4"});
    const int64_t size = fields.integer("block_size", 32, 128);
    if (size != 32 && size != 128) throw SchemaProblem(fields.path("block_size"), "is neither 32 nor 128");
    fields.done();
}

// What the export's gates measured: for people.
void check_parity(Fields fields) {
    const std::string path = fields.path("images");
    for (const Json& size : as_list(fields.at("images"), path, MAX_TENSORS)) {
        if (as_list(size, path, 2).size() != 2) throw SchemaProblem(path, "an entry is not height and width");
        for (const Json& side : size) as_integer(side, path, 1, MAX_DIMENSION);
    }
    fields.number("max_feature_difference");
    fields.number("max_score_difference");
    if (!as_bool(fields.at("kept_indices_equal"), fields.path("kept_indices_equal")))
        throw SchemaProblem(fields.path("kept_indices_equal"), "is not true");
    check_line_or_null(fields, "tensorrt_rtx");
    if (const Json* found = fields.find("drift")) {
        Fields drift(*found, fields.path("drift"));
        drift.integer("positions", 1, MAX_DIMENSION);
        drift.number("top1_agreement", 0, 1);
        drift.number("kl_divergence");
        drift.done();
    }
    fields.done();
}

std::map<std::string, FileEntry> read_files(Fields& fields) {
    std::map<std::string, FileEntry> files;
    uint64_t bytes = 0;
    for (const auto& [path, entry] : fields.dictionary("files", MAX_FILES).items()) {
        as_relative_path(Json(path), "files");
        files[path] = read_file_entry(Fields(entry, "files." + path));
        bytes += files[path].bytes;
    }
    if (bytes > MAX_FILE_BYTES) throw SchemaProblem("files", "have too many bytes together");
    return files;
}

Manifest read_manifest(const Json& data) {
    Fields fields(data, "");
    fields.integer("schema_version", SCHEMA_VERSION, SCHEMA_VERSION);
    for (const auto& [tool, version] : fields.dictionary("tools", MAX_NAMES).items()) as_line(version, "tools");
    fields.integer("opset", 18, 21);
    Manifest manifest;
    Fields model = fields.object("model");
    manifest.model_id = model.line("id");
    check_line_or_null(model, "revision");
    model.line("family");
    manifest.precision = model.choice("precision", {"fp32", "fp16"});
    check_quantization(model);
    model.done();
    manifest.pruning = read_pruning(fields.object("pruning"));
    manifest.tiling = read_tiling(fields.object("tiling"));
    manifest.prompting = read_prompting(fields.object("prompting"));
    manifest.language_model = read_language_model(fields.object("language_model"));
    Fields graphs = fields.object("graphs");
    manifest.vision_encoder = read_graph(graphs.object("vision_encoder"));
    manifest.embed_tokens = read_graph(graphs.object("embed_tokens"));
    manifest.decoder = read_graph(graphs.object("decoder_model_merged"));
    manifest.decoder_onnxruntime = read_optional_graph(graphs, "decoder_onnxruntime");
    manifest.vision_encoder_onnxruntime = read_optional_graph(graphs, "vision_encoder_onnxruntime");
    graphs.done();
    manifest.files = read_files(fields);
    check_parity(fields.object("parity"));
    manifest.vectors = fields.relative_path("vectors");
    fields.done();
    if (const auto problems = disagreements(manifest); !problems.empty()) {
        throw SchemaProblem("manifest", join(problems, ", ", 4));
    }
    return manifest;
}

}  // namespace

const char* dtype_name(ptp_dtype dtype) { return DTYPES[dtype]; }

size_t dtype_size(ptp_dtype dtype) { return DTYPE_SIZES[dtype]; }

ptp_dtype dtype_named(const std::string& name, const std::string& path) {
    const auto found = std::find(DTYPES.begin(), DTYPES.end(), name);
    if (found == DTYPES.end()) throw SchemaProblem(path, cited(name) + " is not an element type of bundles");
    return static_cast<ptp_dtype>(found - DTYPES.begin());
}

std::string describe(const Shape& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) {
        if (i) text += ", ";
        text += shape[i] == ANY ? "?" : std::to_string(shape[i]);
    }
    return text + "]";
}

std::string describe(const TensorSpec& spec) {
    return std::string(dtype_name(spec.dtype)) + " " + describe(spec.shape);
}

std::vector<TensorSpec> read_tensors(const Json& list, const std::string& path) {
    std::vector<TensorSpec> tensors;
    for (const Json& item : as_list(list, path, MAX_TENSORS)) {
        Fields fields(item, path + "." + std::to_string(tensors.size()));
        TensorSpec spec;
        spec.name = fields.line("name");
        if (spec.name.empty()) throw SchemaProblem(fields.path("name"), "is empty");
        spec.dtype = dtype_named(fields.text("dtype"), fields.path("dtype"));
        int64_t elements = 1;
        for (const Json& size : as_list(fields.at("shape"), fields.path("shape"), MAX_RANK)) {
            if (size.is_string()) {
                as_line(size, fields.path("shape"));
                spec.shape.push_back(ANY);
                continue;
            }
            spec.shape.push_back(as_integer(size, fields.path("shape"), 1, MAX_DIMENSION));
            elements *= spec.shape.back();  // below 2^50: checked after each factor
            if (elements > MAX_ELEMENTS) throw SchemaProblem(fields.path("shape"), "has too many elements");
        }
        fields.done();
        tensors.push_back(std::move(spec));
    }
    return tensors;
}

FileEntry read_file_entry(Fields entry) {
    FileEntry file{static_cast<uint64_t>(entry.integer("bytes", 0, MAX_FILE_BYTES)), entry.text("sha256")};
    const bool hexadecimal = file.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (file.sha256.size() != 64 || !hexadecimal)
        throw SchemaProblem(entry.path("sha256"), "is not 64 hexadecimal digits");
    entry.done();
    return file;
}

int64_t Tiling::longest() const {
    int64_t most = 0;
    for (const auto& [rows, columns] : grids)
        most = std::max(most, rows * tokens_per_side * (columns * tokens_per_side + 1));
    return tokens_per_tile() + most;
}

int64_t Manifest::batch() const {
    for (const TensorSpec& spec : vision_encoder.inputs) {
        if (spec.name == "pixel_values" && !spec.shape.empty() && spec.shape[0] != ANY) return spec.shape[0];
    }
    return 1;
}

Manifest Manifest::from_json(std::string_view text) {
    const std::string name = MANIFEST_NAME;
    Json data;
    try {
        data = parse_strict_json(text);
    } catch (const std::exception& error) {
        throw Error(PTP_ERROR_BUNDLE, name + " is not JSON").got(error.what()).advise("export the bundle again");
    }
    const Json* version = data.is_object() && data.contains("schema_version") ? &data["schema_version"] : nullptr;
    if (version && version->is_number_integer() && *version != SCHEMA_VERSION) {
        const bool newer = *version > SCHEMA_VERSION;
        throw Error(PTP_ERROR_BUNDLE, name + (newer ? " is of a newer schema" : " is of an older schema"))
            .got("version " + version->dump())
            .expected(std::to_string(SCHEMA_VERSION))
            .advise(newer ? "install a newer libptp or export the bundle again" : "export the bundle again");
    }
    try {
        return read_manifest(data);
    } catch (const SchemaProblem& problem) {
        throw Error(PTP_ERROR_BUNDLE, name + " does not follow schema " + std::to_string(SCHEMA_VERSION))
            .got(problem.what())
            .advise("export the bundle again");
    }
}

}  // namespace ptp_core
