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

// The decoder graph of a bundle; `embedding` is its embedding graph on the same backend, and must outlive this.
class Decoder {
public:
    Decoder(const Bundle& bundle, Backend& backend, Graph& embedding);

    ptp_dtype embeds_dtype() const;
    int64_t max_context() const { return graph_->max_context(); }

private:
    friend class Decoding;

    const LanguageModel& model_;
    Graph& embedding_;
    std::unique_ptr<Graph> graph_;
    size_t embeds_, mask_, positions_, tokens_;
    std::vector<size_t> past_;                     // places of the cache among the inputs
    std::vector<std::pair<size_t, size_t>> next_;  // places of what a step returns and the next one is fed
};

// One sequence in the making. All that a step hands to the next one stays on the backend's device.
class Decoding {
public:
    explicit Decoding(const Decoder& decoder) : decoder_(decoder) {}

    // Begin the sequence with a prompt and return the likeliest next token; throws Error.
    int64_t prefill(const Sequence& sequence);
    // Append the token that was returned last and return the one after it; throws Error.
    int64_t append();

private:
    int64_t step(const std::vector<Input>& inputs);

    const Decoder& decoder_;
    std::vector<Input> state_;  // by place among the inputs
    ValuePtr tokens_;
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
