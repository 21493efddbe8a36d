#include "vision.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>

#include "error.hpp"

namespace ptp_core {
namespace {

constexpr const char* TOKENIZER = "tokenizer.json";
constexpr uint64_t MAX_TOKENIZER_BYTES = 1 << 26;

Tokenizer read_tokenizer(const Bundle& bundle) {
    const auto path = bundle.path(TOKENIZER);
    Tokenizer tokenizer =
        Tokenizer::from_json(read_file(path, MAX_TOKENIZER_BYTES, PTP_ERROR_BUNDLE), path.string());
    const int64_t rows = bundle.manifest.language_model.vocab_size;
    if (tokenizer.num_ids() > rows) {
        throw Error(PTP_ERROR_BUNDLE, path.string() + " has tokens without an embedding")
            .got("id " + std::to_string(tokenizer.num_ids() - 1))
            .expected("ids below vocab_size " + std::to_string(rows))
            .advise("export the bundle again");
    }
    return tokenizer;
}

// Copy the first row of a batch into the others.
Tensor repeated(Tensor row, int64_t batch) {
    if (batch == 1) return row;
    Shape shape = row.shape;
    shape[0] = batch;
    Tensor all(row.dtype, std::move(shape));
    for (size_t i = 0; i < static_cast<size_t>(batch); ++i)
        std::memcpy(all.bytes.data() + i * row.bytes.size(), row.bytes.data(), row.bytes.size());
    return all;
}

// The vision graph's outputs by name: the first image's row of each, its shape checked.
class Outputs {
public:
    Outputs(const Graph& graph, std::vector<ValuePtr> values) : graph_(graph), values_(std::move(values)) {}

    // Return `count` elements of an output.
    const void* row(const std::string& name, ptp_dtype dtype, int64_t count) const {
        Value& value = at(name);
        const Shape& shape = value.shape();
        int64_t found = 1;
        for (size_t i = 1; i < shape.size(); ++i) found *= shape[i];
        if (shape.empty() || shape[0] < 1 || found != count || value.dtype() != dtype) {
            throw Error(PTP_ERROR_BACKEND, "the vision graph returned an unexpected " + name)
                .got(describe(TensorSpec{name, value.dtype(), shape}));
        }
        return value.host();
    }
    int64_t number(const std::string& name) const { return *static_cast<const int64_t*>(row(name, PTP_INT64, 1)); }
    Value& at(const std::string& name) const { return *values_[graph_.output_index(name)]; }

private:
    const Graph& graph_;
    std::vector<ValuePtr> values_;
};

}  // namespace

VisualEncoder::VisualEncoder(const Bundle& bundle, Backend& backend, bool vision_only)
    : bundle_(bundle), manifest_(bundle.manifest) {
    if (!vision_only || manifest_.takes_question()) {
        prompter();
        require_names(manifest_.embed_tokens, {"input_ids"}, {"inputs_embeds"});
        embed_ = backend.load(bundle, GraphKind::embed);
    }
    vision_ = backend.load(bundle, GraphKind::vision);
}

const Prompter& VisualEncoder::prompter() const {
    const std::lock_guard lock(mutex_);
    if (!prompter_) prompter_.emplace(manifest_.prompting, read_tokenizer(bundle_));
    return *prompter_;
}

ValuePtr VisualEncoder::embed(const std::vector<int64_t>& ids) const {
    const int64_t rows = manifest_.language_model.vocab_size;
    for (const int64_t id : ids) {  // what a backend returns of a row that is not there is not defined
        if (id >= 0 && id < rows) continue;
        throw Error(PTP_ERROR_PROMPT, "a token of the prompt has no embedding")
            .got("id " + std::to_string(id))
            .expected("below " + std::to_string(rows));
    }
    const Tensor input = tensor_of(manifest_.embed_tokens.inputs[0].dtype, {1, static_cast<int64_t>(ids.size())}, ids);
    ValuePtr embeds = embed_->run({&input})[embed_->output_index("inputs_embeds")];
    const Shape expected = {1, static_cast<int64_t>(ids.size()), manifest_.language_model.hidden_size};
    if (embeds->shape() != expected)
        throw Error(PTP_ERROR_BACKEND, "the embedding graph returned an unexpected shape")
            .got(describe(embeds->shape()))
            .expected(describe(expected));
    return embeds;
}

Asked VisualEncoder::ask(std::string_view question) const {
    Asked asked{prompter()(question), nullptr};
    asked.embeds = embed(asked.prompt.ids);
    return asked;
}

Tensor VisualEncoder::prompt_embeds(const TensorSpec& spec, Value& embeds) const {
    const int64_t hidden = manifest_.language_model.hidden_size;
    Tensor padded(spec.dtype, {1, manifest_.prompting.max_prompt, hidden});
    convert_floats(embeds.dtype(), embeds.host(), padded.dtype, padded.bytes.data(), embeds.count());
    return padded;
}

Tensor VisualEncoder::input(const TensorSpec& spec, const Tiles& tiles, const Asked* asked, double alpha,
                            int64_t num_kept) const {
    const auto numbers = [&](Shape shape, const std::vector<int64_t>& values) {
        return tensor_of(spec.dtype, std::move(shape), values);
    };
    const auto mask = [&](auto is_set) {
        std::vector<int64_t> values(static_cast<size_t>(manifest_.prompting.max_prompt));
        for (size_t i = 0; i < asked->prompt.ids.size(); ++i) values[i] = is_set(i);
        return numbers({1, manifest_.prompting.max_prompt}, values);
    };
    if (spec.name == "pixel_values") {
        Tensor pixels(spec.dtype, {1, tiles.max_tiles, 3, tiles.tile_size, tiles.tile_size});
        put_floats(pixels, 0, tiles.pixel_values.data(), tiles.pixel_values.size());
        return pixels;
    }
    if (spec.name == "image_sizes") return numbers({1, 2}, {tiles.height, tiles.width});
    if (spec.name == "tile_grid") return numbers({1, 2}, {tiles.grid.first, tiles.grid.second});
    if (spec.name == "num_kept") return numbers({1}, {num_kept});
    if (spec.name == "alpha") {
        const auto weight = static_cast<float>(alpha);
        Tensor value(spec.dtype, {1});
        put_floats(value, 0, &weight, 1);
        return value;
    }
    if (spec.name == "prompt_embeds") return prompt_embeds(spec, *asked->embeds);
    if (spec.name == "prompt_mask") return mask([](size_t) { return true; });
    if (spec.name == "question_mask") return mask([&](size_t i) { return asked->prompt.question_mask[i]; });
    return numbers({1},
                   {static_cast<int64_t>(asked->prompt.prefix)});  // prefix_length, the last that the contract allows
}

VisualTokens VisualEncoder::encode(const Tiles& tiles, const Asked* asked, double alpha, int64_t num_kept) const {
    if (manifest_.takes_question() && !asked)
        throw Error(PTP_ERROR_PROMPT, "this bundle chooses tokens by the question")
            .expected("a question")
            .advise("give one");
    const Tiling& tiling = manifest_.tiling;
    if (tiles.max_tiles != tiling.max_tiles || tiles.tile_size != tiling.tile_size) {
        throw Error(PTP_ERROR_CONFIG, "the tiles are another bundle's")
            .got(std::to_string(tiles.max_tiles) + " of " + std::to_string(tiles.tile_size) + " pixels")
            .expected(std::to_string(tiling.max_tiles) + " of " + std::to_string(tiling.tile_size));
    }
    std::vector<Tensor> tensors;
    for (const TensorSpec& spec : vision_->spec().inputs) {
        Tensor row = input(spec, tiles, asked, alpha, num_kept);
        tensors.push_back(spec.name == "num_kept" ? std::move(row) : repeated(std::move(row), manifest_.batch()));
    }
    std::vector<Input> inputs;
    for (const Tensor& tensor : tensors) inputs.emplace_back(&tensor);
    const Outputs outputs(*vision_, vision_->run(inputs));

    const int64_t valid = outputs.number("num_valid"), hidden = manifest_.language_model.hidden_size;
    if (valid < 0 || valid > num_kept)
        throw Error(PTP_ERROR_BACKEND, "the vision graph returned an impossible num_valid")
            .got(static_cast<long long>(valid));
    const ptp_dtype dtype = outputs.at("image_features").dtype();
    VisualTokens visual{Tensor(dtype, {valid, hidden}), {}, outputs.number("packed_length"), {}, std::nanf("")};
    const void* features = outputs.row("image_features", dtype, num_kept * hidden);
    if (valid) std::memcpy(visual.features.bytes.data(), features, visual.features.bytes.size());
    const auto* positions = static_cast<const int64_t*>(outputs.row("image_positions", PTP_INT64, num_kept));
    visual.positions.assign(positions, positions + valid);
    const std::vector<int64_t>& places = visual.positions;
    const int64_t packed = visual.packed_length;
    const bool ascends = std::adjacent_find(places.begin(), places.end(), std::greater_equal<>()) == places.end();
    if (packed < 0 || packed > MAX_DIMENSION || !ascends || (valid && (places.front() < 0 || places.back() >= packed))) {
        throw Error(PTP_ERROR_BACKEND, "the vision graph returned impossible positions")
            .got("of " + std::to_string(packed) + " tokens");
    }
    const auto* budgets = static_cast<const int32_t*>(outputs.row("tile_budgets", PTP_INT32, tiling.max_tiles));
    visual.tile_budgets.assign(budgets, budgets + tiling.max_tiles);
    if (manifest_.takes_question())
        visual.alpha = *static_cast<const float*>(outputs.row("effective_alpha", PTP_FLOAT32, 1));
    return visual;
}

}  // namespace ptp_core
