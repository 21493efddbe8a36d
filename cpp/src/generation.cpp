#include "generation.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

using Clock = std::chrono::steady_clock;

// Refuse a sequence whose last generated token would stand beyond the model's positions.
void check_length(const Sequence& sequence, int64_t max_new_tokens, int64_t max_positions) {
    const int64_t next = sequence.next_position();
    // the last token is generated and never fed
    if (next <= max_positions && max_new_tokens - 1 <= max_positions - next) return;
    throw Error(PTP_ERROR_PROMPT, "the prompt, the image and the answer do not fit into the language model")
        .got(std::to_string(next) + " positions and " + std::to_string(max_new_tokens) + " new tokens")
        .expected("at most " + std::to_string(max_positions) + " positions")
        .advise("lower max_new_tokens or shorten the question");
}

// Refuse a sequence that would outgrow an engine's cache.
void check_cache(const Sequence& sequence, int64_t max_new_tokens, int64_t max_context) {
    const auto length = static_cast<int64_t>(sequence.positions.size());
    if (!max_context || (length <= max_context && max_new_tokens - 1 <= max_context - length)) return;
    throw Error(PTP_ERROR_PROMPT, "the prompt, the image and the answer do not fit into the engine's cache")
        .got(std::to_string(length) + " tokens and " + std::to_string(max_new_tokens) + " new ones")
        .expected("at most " + std::to_string(max_context) + " tokens")
        .advise("lower max_new_tokens, or build the engine with a larger --max-context");
}

void append_range(std::vector<int64_t>& positions, int64_t start, size_t count) {
    positions.resize(positions.size() + count);
    std::iota(positions.end() - static_cast<std::ptrdiff_t>(count), positions.end(), start);
}

}  // namespace

Sequence splice(const Asked& asked, const VisualTokens& visual, bool compact_positions, ptp_dtype dtype) {
    const size_t start = asked.prompt.prefix, rest = asked.prompt.ids.size() - start, kept = visual.positions.size();
    const size_t length = start + kept + rest, hidden = static_cast<size_t>(visual.features.shape[1]);
    Sequence sequence{Tensor(dtype, {1, static_cast<int64_t>(length), visual.features.shape[1]}), {}};
    std::byte* out = sequence.embeds.bytes.data();
    const auto put = [&](ptp_dtype from, const void* rows, size_t first, size_t count) {
        const auto* in = static_cast<const std::byte*>(rows) + first * hidden * dtype_size(from);
        convert_floats(from, in, dtype, out, count * hidden);
        out += count * hidden * dtype_size(dtype);
    };
    const void* embeds = asked.embeds->host();
    put(asked.embeds->dtype(), embeds, 0, start);
    put(visual.features.dtype, visual.features.bytes.data(), 0, kept);
    put(asked.embeds->dtype(), embeds, start, rest);
    if (compact_positions) {
        append_range(sequence.positions, 0, length);
        return sequence;
    }
    const auto offset = static_cast<int64_t>(start);
    append_range(sequence.positions, 0, start);
    for (const int64_t position : visual.positions) sequence.positions.push_back(offset + position);
    append_range(sequence.positions, offset + visual.packed_length, rest);
    return sequence;
}

Decoder::Decoder(const Bundle& bundle, Backend& backend) : model_(bundle.manifest.language_model) {
    const GraphSpec& spec = bundle.manifest.decoder;
    std::vector<std::string> inputs = {"inputs_embeds", "attention_mask", "position_ids"}, outputs = {"logits"}, names;
    for (int64_t layer = 0; layer < model_.num_layers; ++layer) {
        for (const char* part : {".key", ".value"}) names.push_back(std::to_string(layer) + part);
    }
    for (const std::string& name : names) {
        inputs.push_back("past_key_values." + name);
        outputs.push_back("present." + name);
    }
    require_names(spec, inputs, outputs);
    graph_ = backend.load(bundle, GraphKind::decoder);
    embeds_ = graph_->input_index("inputs_embeds");
    mask_ = graph_->input_index("attention_mask");
    positions_ = graph_->input_index("position_ids");
    logits_ = graph_->output_index("logits");
    for (const std::string& name : names) {
        cache_.emplace_back(graph_->input_index("past_key_values." + name), graph_->output_index("present." + name));
    }
}

ptp_dtype Decoder::embeds_dtype() const { return graph_->spec().inputs[embeds_].dtype; }

Decoding::Decoding(const Decoder& decoder) : decoder_(decoder), past_(decoder.graph_->spec().inputs.size()) {
    const auto& inputs = decoder.graph_->spec().inputs;
    empty_.reserve(decoder.cache_.size());
    for (const auto& [past, present] : decoder.cache_) {
        empty_.emplace_back(inputs[past].dtype, Shape{1, decoder.model_.num_kv_heads, 0, decoder.model_.head_dim});
        past_[past] = &empty_.back();
    }
}

int64_t Decoding::step(const Input& embeds, const std::vector<int64_t>& positions) {
    const auto& inputs = decoder_.graph_->spec().inputs;
    const auto count = static_cast<int64_t>(positions.size());
    length_ += count;
    const Tensor mask =
        tensor_of(inputs[decoder_.mask_].dtype, {1, length_}, std::vector<int64_t>(static_cast<size_t>(length_), 1));
    const Tensor places = tensor_of(inputs[decoder_.positions_].dtype, {1, count}, positions);
    past_[decoder_.embeds_] = embeds;
    past_[decoder_.mask_] = &mask;
    past_[decoder_.positions_] = &places;
    std::vector<ValuePtr> outputs = decoder_.graph_->run(past_);
    for (const auto& [past, present] : decoder_.cache_) past_[past] = outputs[present];
    return most_likely(*outputs[decoder_.logits_]);
}

int64_t Decoding::most_likely(Value& logits) const {
    const auto count = static_cast<size_t>(decoder_.model_.vocab_size);
    if (logits.count() != count)
        throw Error(PTP_ERROR_BACKEND, "the decoder returned unexpected logits").got(describe(logits.shape()));
    std::vector<float> converted;
    const auto* values = static_cast<const float*>(logits.host());
    if (logits.dtype() != PTP_FLOAT32) {
        converted.resize(count);
        convert_floats(logits.dtype(), logits.host(), PTP_FLOAT32, converted.data(), count);
        values = converted.data();
    }
    const bool has_nan = std::any_of(values, values + count, [](float x) { return std::isnan(x); });
    const float* best = std::max_element(values, values + count);  // the first of equals
    if (has_nan || !std::isfinite(*best)) {
        throw Error(PTP_ERROR_BACKEND, "the decoder returned numbers that are not finite")
            .advise("export with --dtype fp32 or report the model");
    }
    return best - values;
}

Answer generate(const VisualEncoder& encoder, const Decoder& decoder, const Manifest& manifest,
                const VisualTokens& visual, std::string_view question, const GenerateOptions& options,
                const OnToken& on_token) {
    const auto started = Clock::now();
    if (visual.features.shape[1] != manifest.language_model.hidden_size)
        throw Error(PTP_ERROR_CONFIG, "the visual tokens are another bundle's");
    const Sequence sequence =
        splice(encoder.ask(question), visual, manifest.pruning.compact_positions, decoder.embeds_dtype());
    check_length(sequence, options.max_new_tokens, manifest.language_model.max_position_embeddings);
    check_cache(sequence, options.max_new_tokens, decoder.max_context());
    const auto& ends = manifest.prompting.eos_token_ids;
    TextStream stream(encoder.prompter().tokenizer());
    StopText stop(options.stop);
    Decoding decoding(decoder);
    Answer answer{0, PTP_STOP_LENGTH, 0};
    int64_t token = decoding.step(&sequence.embeds, sequence.positions);
    answer.seconds_to_first_token = std::chrono::duration<double>(Clock::now() - started).count();
    for (int64_t position = sequence.next_position();; ++position) {
        ++answer.num_tokens;
        const bool ended = std::find(ends.begin(), ends.end(), token) != ends.end();
        const bool wanted = on_token(token, ended ? "" : stop.push(stream.push(token)));
        if (!wanted || ended || stop.stopped()) {
            answer.stop_reason = ended ? PTP_STOP_EOS : stop.stopped() ? PTP_STOP_TEXT : PTP_STOP_CALLBACK;
            break;
        }
        if (answer.num_tokens == options.max_new_tokens) break;
        const ValuePtr embeds = encoder.embed({token});
        Tensor converted;
        Input next = embeds;
        if (embeds->dtype() != decoder.embeds_dtype()) {
            converted = Tensor(decoder.embeds_dtype(), embeds->shape());
            convert_floats(embeds->dtype(), embeds->host(), converted.dtype, converted.bytes.data(), converted.count());
            next = &converted;
        }
        token = decoding.step(next, {position});
    }
    if (stop.stopped() || answer.stop_reason == PTP_STOP_CALLBACK) return answer;
    std::string rest = stop.push(stream.finish());
    rest += stop.finish();
    if (stop.stopped()) answer.stop_reason = PTP_STOP_TEXT;
    if (!rest.empty() && !on_token(-1, rest)) answer.stop_reason = PTP_STOP_CALLBACK;
    return answer;
}

}  // namespace ptp_core
