// Byte-pair encoding of one word, as the library `tokenizers` does it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "json.hpp"

namespace ptp_core {

class Bpe {
public:
    // One token of a word: its id and how many of the word's bytes it stands for.
    struct Symbol {
        int64_t id;
        size_t length;
    };

    // Read `model` of a tokenizer.json; throws SchemaProblem.
    explicit Bpe(Fields model);
    Bpe(Bpe&&) = default;  // and no copies: `tokens_` points into `vocabulary_`

    std::vector<Symbol> encode(std::string_view word) const;

    size_t size() const { return vocabulary_.size(); }
    // Return one more than the largest id.
    int64_t num_ids() const { return static_cast<int64_t>(tokens_.size()); }
    // Return the id of a token, -1 if there is none.
    int64_t id_of(const std::string& token) const;
    // Return the text of a token, nullptr if there is none.
    const std::string* token_of(int64_t id) const;

private:
    struct Merge {
        uint32_t rank;
        int64_t id;
    };

    void read_vocabulary(Fields& model);
    void read_merges(Fields& model);
    std::vector<Symbol> characters(std::string_view word) const;
    const Merge* merge_of(int64_t left, int64_t right) const;

    std::unordered_map<std::string, int64_t> vocabulary_;
    std::vector<const std::string*> tokens_;  // by id
    std::unordered_map<uint64_t, Merge> merges_;
    int64_t unknown_ = -1;
    std::vector<int64_t> bytes_;  // ids of <0x00> to <0xFF>; empty without byte fallback
    bool fuse_unknown_ = false, ignore_merges_ = false;
};

}  // namespace ptp_core
