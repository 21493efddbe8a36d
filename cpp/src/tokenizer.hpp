// A documented subset of tokenizer.json (docs/cpp.md): ids equal to the library `tokenizers`, anything else refused.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bpe.hpp"
#include "decode.hpp"
#include "pretokenize.hpp"

namespace ptp_core {

struct Token {
    int64_t id;
    size_t start, end;  // characters of the text
    bool from_text;     // false for what the post-processor added
};

class Tokenizer {
public:
    // Read the text of a tokenizer.json; truncation and padding are ignored. Throws Error.
    static Tokenizer from_json(std::string_view text, const std::string& name);

    // Return the tokens of valid UTF-8.
    std::vector<Token> encode(std::string_view text, bool add_special_tokens) const;

    // Return the text of ids, special tokens left out.
    std::string decode(const std::vector<int64_t>& ids) const;

    bool is_special(int64_t id) const;
    // Return the text of a token, nullptr if there is none.
    const std::string* token_of(int64_t id) const;

private:
    struct Added {
        int64_t id;
        std::string content;
        bool strip_left, strip_right, special;
    };
    // A place in a text that is one of the added tokens, or lies between two of them.
    struct Section {
        size_t start, end;
        const Added* token;
    };

    Tokenizer(const Json& data);
    void read_added(const Json& list);
    void read_post_processor(const Json& config, const std::string& path);
    void read_template(Fields fields);
    std::vector<Section> sections(std::string_view text, const std::vector<Added>& tokens) const;
    void encode_plain(Traced text, std::vector<Token>& out) const;
    void trim(Token& token, const std::string& piece, bool first) const;

    Bpe model_;
    Normalizer normalizer_;
    PreTokenizer pre_tokenizer_;
    DecoderChain decoder_;
    std::vector<Added> raw_, normalized_;  // found before and after normalization
    std::unordered_map<int64_t, Added> by_id_;
    std::vector<int64_t> before_, after_;  // what the post-processor adds
    bool trims_ = false, keeps_one_space_ = false;
};

}  // namespace ptp_core
