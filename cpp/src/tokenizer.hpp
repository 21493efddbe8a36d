// A documented subset of tokenizer.json (docs/cpp.md): ids equal to the library `tokenizers`, anything else refused.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "added_tokens.hpp"
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

    // Return one more than the largest id.
    int64_t num_ids() const { return num_ids_; }

    bool is_special(int64_t id) const;
    // Return the text of a token, nullptr if there is none.
    const std::string* token_of(int64_t id) const;

private:
    Tokenizer(const Json& data);
    void read_added(const Json& data);
    void read_post_processor(const Json& config, const std::string& path);
    void read_template(Fields fields);
    int64_t id_that_the_library_gives(const std::string& content, int64_t largest) const;
    void encode_plain(Traced text, std::vector<Token>& out) const;
    void trim(Token& token, const std::string& piece, bool first) const;

    Bpe model_;
    Normalizer normalizer_;
    PreTokenizer pre_tokenizer_;
    DecoderChain decoder_;
    AddedTokens raw_, normalized_;  // found before and after normalization
    std::unordered_map<int64_t, AddedToken> by_id_;
    std::vector<int64_t> before_, after_;  // what the post-processor adds
    int64_t num_ids_ = 0;
    Growth growth_;                        // of a text before it is cut into tokens
    bool trims_ = false, keeps_one_space_ = false;
};

}  // namespace ptp_core
