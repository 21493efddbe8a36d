#include "generation.hpp"

#include <algorithm>
#include <chrono>
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

Decoder::Decoder(const Bundle& bundle, Backend& backend, Graph& embedding)
    : model_(bundle.manifest.language_model), embedding_(embedding) {
    const GraphSpec& spec = bundle.manifest.decoder;
    std::vector<std::string> cache, fed_back = {"next_attention_mask", "next_position_ids"};
    for (int64_t layer = 0; layer < model_.num_layers; ++layer) {
        for (const char* part : {".key", ".value"}) cache.push_back("present." + std::to_string(layer) + part);
    }
    fed_back.insert(fed_back.end(), cache.begin(), cache.end());
    std::vector<std::string> inputs = {"inputs_embeds"}, outputs = {"logits", "next_tokens"};
    for (const std::string& name : fed_back) inputs.push_back(becomes(name));
    outputs.insert(outputs.end(), fed_back.begin(), fed_back.end());
    require_names(spec, inputs, outputs);
    graph_ = backend.load(bundle, GraphKind::decoder);
    embeds_ = graph_->input_index("inputs_embeds");
    mask_ = graph_->input_index("attention_mask");
    positions_ = graph_->input_index("position_ids");
    tokens_ = graph_->output_index("next_tokens");
    for (const std::string& name : cache) past_.push_back(graph_->input_index(becomes(name)));
    for (const std::string& name : fed_back)
        next_.emplace_back(graph_->output_index(name), graph_->input_index(becomes(name)));
}

ptp_dtype Decoder::embeds_dtype() const { return graph_->spec().inputs[embeds_].dtype; }

int64_t Decoding::prefill(const Sequence& sequence) {
    const auto& inputs = decoder_.graph_->spec().inputs;
    const LanguageModel& model = decoder_.model_;
    const auto count = static_cast<int64_t>(sequence.positions.size());
    const std::vector<int64_t> ones(sequence.positions.size(), 1);
    const Tensor mask = tensor_of(inputs[decoder_.mask_].dtype, {1, count}, ones);
    const Tensor positions = tensor_of(inputs[decoder_.positions_].dtype, {1, count}, sequence.positions);
    std::vector<Input> fed(inputs.size());
    fed[decoder_.embeds_] = &sequence.embeds;
    fed[decoder_.mask_] = &mask;
    fed[decoder_.positions_] = &positions;
    std::vector<Tensor> empty;
    empty.reserve(decoder_.past_.size());
    for (const size_t place : decoder_.past_) {
        empty.emplace_back(inputs[place].dtype, Shape{1, model.num_kv_heads, 0, model.head_dim});
        fed[place] = &empty.back();
    }
    state_.resize(inputs.size());
    return step(fed);
}

int64_t Decoding::append() {
    Graph& embedding = decoder_.embedding_;
    state_[decoder_.embeds_] = embedding.run({tokens_})[embedding.output_index("inputs_embeds")];
    return step(state_);
}

int64_t Decoding::step(const std::vector<Input>& inputs) {
    const std::vector<ValuePtr> outputs = decoder_.graph_->run(inputs);
    for (const auto& [output, input] : decoder_.next_) state_[input] = outputs[output];
    tokens_ = outputs[decoder_.tokens_];
    if (tokens_->dtype() != PTP_INT64 || tokens_->count() != 1)
        throw Error(PTP_ERROR_BACKEND, "the decoder returned unexpected tokens").got(describe(tokens_->shape()));
    const int64_t token = *static_cast<const int64_t*>(tokens_->host());
    if (token < 0 || token >= decoder_.model_.vocab_size)  // what the graph says of logits without a usable number
        throw Error(PTP_ERROR_BACKEND, "the decoder returned numbers that are not finite")
            .advise("export with --dtype fp32 or report the model");
    return token;
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
    int64_t token = decoding.prefill(sequence);
    answer.seconds_to_first_token = std::chrono::duration<double>(Clock::now() - started).count();
    for (;;) {
        ++answer.num_tokens;
        const bool ended = std::find(ends.begin(), ends.end(), token) != ends.end();
        const bool wanted = on_token(token, ended ? "" : stop.push(stream.push(token)));
        if (!wanted || ended || stop.stopped()) {
            answer.stop_reason = ended ? PTP_STOP_EOS : stop.stopped() ? PTP_STOP_TEXT : PTP_STOP_CALLBACK;
            break;
        }
        if (answer.num_tokens == options.max_new_tokens) break;
        token = decoding.append();
    }
    if (stop.stopped() || answer.stop_reason == PTP_STOP_CALLBACK) return answer;
    std::string rest = stop.push(stream.finish());
    rest += stop.finish();
    if (stop.stopped()) answer.stop_reason = PTP_STOP_TEXT;
    if (!rest.empty() && !on_token(-1, rest)) answer.stop_reason = PTP_STOP_CALLBACK;
    return answer;
}

}  // namespace ptp_core
