// Image and question in, the visual tokens that the language model will see out (runtime/vision.py).
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "graph.hpp"
#include "prompt.hpp"
#include "tiles.hpp"

namespace ptp_core {

struct VisualTokens {
    Tensor features;                 // (n, H)
    std::vector<int64_t> positions;  // (n,), ascending
    int64_t packed_length;
    std::vector<int32_t> tile_budgets;  // (T,)
    float alpha;                        // NaN where the bundle does not look at the question
};

// A prompt and the embeddings of its tokens, (1, prefix + suffix, H) where the embedding graph ran.
struct Asked {
    Prompt prompt;
    ValuePtr embeds;
};

class VisualEncoder {
public:
    VisualEncoder(const Bundle& bundle, Backend& backend);

    // Return the embeddings (1, S, H) of token ids.
    ValuePtr embed(const std::vector<int64_t>& ids) const;
    Asked ask(std::string_view question) const;

    // Return the visual tokens of one image; throws Error.
    VisualTokens encode(const Tiles& tiles, const Asked* asked, double alpha, int64_t num_kept) const;

    const Prompter& prompter() const { return prompter_; }

private:
    Tensor input(const TensorSpec& spec, const Tiles& tiles, const Asked* asked, double alpha, int64_t num_kept) const;
    Tensor prompt_embeds(const TensorSpec& spec, Value& embeds) const;

    const Manifest& manifest_;
    Prompter prompter_;
    std::unique_ptr<Graph> embed_, vision_;
};

}  // namespace ptp_core
