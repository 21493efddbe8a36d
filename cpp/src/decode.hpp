// Tokens back to text: the decoders of this subset, and the stream that shows an answer as it is generated.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "growth.hpp"
#include "json.hpp"

namespace ptp_core {

class Tokenizer;

// ByteLevel, Metaspace, or a sequence of Replace, ByteFallback, Fuse and Strip.
class DecoderChain {
public:
    // Read `decoder` of a tokenizer.json; throws SchemaProblem.
    explicit DecoderChain(const Json& config);

    std::string operator()(std::vector<std::string> tokens) const;

private:
    enum class Kind { byte_level, metaspace, replace, byte_fallback, fuse, strip };
    struct Step {
        Kind kind;
        std::string pattern, content;
        size_t count = 0;
    };

    void read(const Json& config, const std::string& path);
    void refuse_replacing_in_joined_tokens() const;
    static std::vector<std::string> apply(const Step& step, std::vector<std::string> tokens);

    std::vector<Step> steps_;
    Growth growth_;
};

// Turns token ids into text as they come: whole characters only, special tokens left out (runtime/detokenize.py).
// Only the last piece that was shown is decoded again, together with what came after it.
class TextStream {
public:
    explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

    // Return the text that this token completes, often none.
    std::string push(int64_t token);
    // Return what is left; bytes that make no character become U+FFFD.
    std::string finish();

private:
    std::string decode() const;
    std::string emit(const std::string& text);

    const Tokenizer& tokenizer_;
    std::vector<int64_t> shown_, waiting_;
};

// Holds text back while it could be the beginning of a stop text (runtime/sampling.py).
class StopText {
public:
    explicit StopText(std::vector<std::string> stop) : stop_(std::move(stop)) {}

    // Return the text that may be shown.
    std::string push(const std::string& piece);
    // Return the text that was held back and turned out to be none of the stop texts.
    std::string finish() { return std::exchange(held_, {}); }
    bool stopped() const { return stopped_; }

private:
    std::vector<std::string> stop_;
    std::string held_;
    bool stopped_ = false;
};

}  // namespace ptp_core
