// From a question to token ids around the image (runtime/tokenize.py).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "manifest.hpp"
#include "tokenizer.hpp"

namespace ptp_core {

struct Prompt {
    std::vector<int64_t> ids;         // prefix then suffix, the image token left out
    size_t prefix;                    // how many of them stand before the image
    std::vector<bool> question_mask;  // of each id, whether it holds a part of the user's question
};

class Prompter {
public:
    Prompter(const Prompting& prompting, Tokenizer tokenizer)
        : prompting_(prompting), tokenizer_(std::move(tokenizer)) {}

    // Return the token ids of a question about one image; throws Error.
    Prompt operator()(std::string_view question) const;

    const Tokenizer& tokenizer() const { return tokenizer_; }

private:
    const Prompting& prompting_;
    Tokenizer tokenizer_;
};

}  // namespace ptp_core
