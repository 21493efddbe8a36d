// One answer: prefill, then token after token, the most likely one each time (runtime/generation.py, decoding.py).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "graph.hpp"
#include "vision.hpp"

namespace ptp_core {

// The language model's input for one question.
struct Sequence {
    Tensor embeds;                   // (1, S, H): prompt prefix, visual tokens, prompt suffix
    std::vector<int64_t> positions;  // (S,); the tokens that were pruned leave gaps under the policy `original`

    int64_t next_position() const { return positions.back() + 1; }
};

Sequence splice(const Asked& asked, const VisualTokens& visual, bool compact_positions, ptp_dtype dtype);

// The decoder graph of a bundle.
class Decoder {
public:
    Decoder(const Bundle& bundle, Backend& backend);

    ptp_dtype embeds_dtype() const;
    int64_t max_context() const { return graph_->max_context(); }

private:
    friend class Decoding;

    const LanguageModel& model_;
    std::unique_ptr<Graph> graph_;
    size_t embeds_, mask_, positions_, logits_;
    std::vector<std::pair<size_t, size_t>> cache_;  // places of each past among the inputs, and of its present
};

// One sequence in the making. The cache stays on the backend's device between steps.
class Decoding {
public:
    explicit Decoding(const Decoder& decoder);

    // Append tokens to the sequence and return the most likely next one; throws Error.
    int64_t step(const Input& embeds, const std::vector<int64_t>& positions);

private:
    int64_t most_likely(Value& logits) const;

    const Decoder& decoder_;
    int64_t length_ = 0;
    std::vector<Tensor> empty_;
    std::vector<Input> past_;  // by place among the inputs
};

struct GenerateOptions {
    int64_t max_new_tokens;
    std::vector<std::string> stop;
};

struct Answer {
    int64_t num_tokens;
    ptp_stop_reason stop_reason;
    double seconds_to_first_token;
};

// Called with each token and the text that it completes; false ends the answer.
using OnToken = std::function<bool(int64_t, const std::string&)>;

// Generate an answer; throws Error.
Answer generate(const VisualEncoder& encoder, const Decoder& decoder, const Manifest& manifest,
                const VisualTokens& visual, std::string_view question, const GenerateOptions& options,
                const OnToken& on_token);

}  // namespace ptp_core
