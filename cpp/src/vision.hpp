// Image and question in, the visual tokens that the language model will see out (runtime/vision.py).
#pragma once

#include <memory>
#include <mutex>
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
    // `bundle` must outlive this. With `vision_only`, what tokens and embeddings need is left out where no question has
    // a say in the image's tokens.
    VisualEncoder(const Bundle& bundle, Backend& backend, bool vision_only);

    // Return the embeddings (1, S, H) of token ids.
    ValuePtr embed(const std::vector<int64_t>& ids) const;
    Asked ask(std::string_view question) const;

    // Return the visual tokens of one image; throws Error.
    VisualTokens encode(const Tiles& tiles, const Asked* asked, double alpha, int64_t num_kept) const;

    // Throws Error where this version cannot use the bundle's tokenizer.
    const Prompter& prompter() const;
    // The embedding graph; there is none where it was left out.
    Graph& embedding() const { return *embed_; }

private:
    Tensor input(const TensorSpec& spec, const Tiles& tiles, const Asked* asked, double alpha, int64_t num_kept) const;
    Tensor prompt_embeds(const TensorSpec& spec, Value& embeds) const;

    const Bundle& bundle_;
    const Manifest& manifest_;
    mutable std::mutex mutex_;
    mutable std::optional<Prompter> prompter_;
    std::unique_ptr<Graph> embed_, vision_;
};

}  // namespace ptp_core
