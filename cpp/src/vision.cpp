#include "vision.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>

#include "error.hpp"

namespace ptp_core {
namespace {

constexpr const char* TOKENIZER = "tokenizer.json";
constexpr float ALPHA_ROUNDING = 1e-3F;  // a quotient in 0 to 1 may be rounded beyond it

Tokenizer read_tokenizer(const Bundle& bundle) {
    const auto path = bundle.path(TOKENIZER);
    Tokenizer tokenizer = Tokenizer::from_json(bundle.read(TOKENIZER), path.string());
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

Error impossible(const std::string& name) {
    return Error(PTP_ERROR_BACKEND, "the vision graph returned impossible " + name);
}

bool all_finite(const Tensor& tensor) {
    std::vector<float> values(tensor.bytes.size() / dtype_size(tensor.dtype));
    convert_floats(tensor.dtype, tensor.bytes.data(), PTP_FLOAT32, values.data(), values.size());
    return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

void check_budgets(const std::vector<int32_t>& budgets, int64_t most, int64_t num_kept) {
    int64_t sum = 0;
    bool fits = true;
    for (const int32_t budget : budgets) {
        fits = fits && budget >= 0 && budget <= most;
        sum += budget;
    }
    if (!fits || sum > num_kept)
        throw impossible("tile_budgets")
            .expected("0 to " + std::to_string(most) + " each, " + std::to_string(num_kept) + " at most together");
}

// The vision graph's outputs by name: the first image's row of each. A graph from a stranger may return anything; the
// checks are those of runtime/vision_outputs.py.
class Outputs {
public:
    Outputs(const Graph& graph, std::vector<ValuePtr> values, int64_t batch)
        : graph_(graph), values_(std::move(values)), batch_(batch) {}

    // Return the first row of an output, which must have `batch` of this shape.
    const void* row(const std::string& name, ptp_dtype dtype, Shape shape) const {
        Value& value = at(name);
        shape.insert(shape.begin(), batch_);
        if (value.shape() != shape || value.dtype() != dtype) {
            throw Error(PTP_ERROR_BACKEND, "the vision graph returned an unexpected " + name)
                .got(describe(TensorSpec{name, value.dtype(), value.shape()}))
                .expected(describe(TensorSpec{name, dtype, shape}));
        }
        return value.host();
    }
    // Return a number, which must be from 1 to `most`.
    int64_t number(const std::string& name, int64_t most) const {
        const int64_t found = *static_cast<const int64_t*>(row(name, PTP_INT64, {}));
        if (found < 1 || found > most)
            throw impossible(name).got(static_cast<long long>(found)).expected("1 to " + std::to_string(most));
        return found;
    }
    Value& at(const std::string& name) const { return *values_[graph_.output_index(name)]; }

private:
    const Graph& graph_;
    std::vector<ValuePtr> values_;
    int64_t batch_;
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
    const Outputs outputs(*vision_, vision_->run(inputs), manifest_.batch());

    const int64_t hidden = manifest_.language_model.hidden_size;
    const int64_t valid = outputs.number("num_valid", num_kept), packed = outputs.number("packed_length", tiling.longest());
    const ptp_dtype dtype = outputs.at("image_features").dtype();
    VisualTokens visual{Tensor(dtype, {valid, hidden}), {}, packed, {}, std::nanf("")};
    std::memcpy(visual.features.bytes.data(), outputs.row("image_features", dtype, {num_kept, hidden}),
                visual.features.bytes.size());
    if (!all_finite(visual.features)) throw impossible("image_features").expected("finite numbers");
    const auto* positions = static_cast<const int64_t*>(outputs.row("image_positions", PTP_INT64, {num_kept}));
    visual.positions.assign(positions, positions + valid);
    const std::vector<int64_t>& places = visual.positions;
    const bool ascends = std::adjacent_find(places.begin(), places.end(), std::greater_equal<>()) == places.end();
    if (!ascends || places.front() < 0 || places.back() >= packed)
        throw impossible("image_positions").expected("ascending ones below " + std::to_string(packed));
    const auto* budgets = static_cast<const int32_t*>(outputs.row("tile_budgets", PTP_INT32, {tiling.max_tiles}));
    visual.tile_budgets.assign(budgets, budgets + tiling.max_tiles);
    check_budgets(visual.tile_budgets, tiling.tokens_per_tile(), num_kept);
    if (manifest_.takes_question()) {
        visual.alpha = *static_cast<const float*>(outputs.row("effective_alpha", PTP_FLOAT32, {}));
        if (!(visual.alpha >= -ALPHA_ROUNDING && visual.alpha <= 1 + ALPHA_ROUNDING)) {
            char text[32];
            std::snprintf(text, sizeof text, "%g", static_cast<double>(visual.alpha));
            throw impossible("effective_alpha").got(text).expected("0 to 1");
        }
    }
    return visual;
}

}  // namespace ptp_core
