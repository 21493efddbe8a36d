#include "bpe.hpp"

#include <nlohmann/json.hpp>
#include <queue>
#include <tuple>

#include "growth.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr int64_t MAX_TOKENS = 1 << 20;
constexpr size_t MAX_MERGES = 1 << 22, MAX_TOKEN_BYTES = 1 << 12;
constexpr size_t NONE = SIZE_MAX;

uint64_t pair_key(int64_t left, int64_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right);
}

// A setting that may be null.
bool flag(Fields& fields, const std::string& key) {
    const Json* found = fields.find(key);
    return found && as_bool(*found, fields.path(key));
}

// Refuse a setting that this subset does not have.
void refuse_unless(Fields& fields, const std::string& key, const Json& off) {
    const Json* found = fields.find(key);
    if (found && *found != off) throw SchemaProblem(fields.path(key), "is not supported");
}

std::string byte_token(unsigned byte) {
    constexpr const char* DIGITS = "0123456789ABCDEF";
    return std::string("<0x") + DIGITS[byte >> 4] + DIGITS[byte & 15] + ">";
}

}  // namespace

Bpe::Bpe(Fields model) {
    if (model.text("type") != "BPE") throw SchemaProblem(model.path("type"), "only BPE is supported");
    refuse_unless(model, "dropout", 0.0);
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) refuse_unless(model, key, "");
    fuse_unknown_ = flag(model, "fuse_unk");
    ignore_merges_ = flag(model, "ignore_merges");
    read_vocabulary(model);
    read_merges(model);
    if (model.find("unk_token")) {
        unknown_ = id_of(content_of(model, "unk_token"));
        if (unknown_ < 0) throw SchemaProblem(model.path("unk_token"), "is not in the vocabulary");
    }
    if (flag(model, "byte_fallback")) {
        for (unsigned byte = 0; byte < 256; ++byte) bytes_.push_back(id_of(byte_token(byte)));
    }
    model.done();
}

void Bpe::read_vocabulary(Fields& model) {
    Fields vocabulary = model.object("vocab");
    for (const auto& [token, id] : model.at("vocab").items()) {
        const int64_t number = as_integer(id, vocabulary.path(token), 0, MAX_TOKENS - 1);
        if (token.size() > MAX_TOKEN_BYTES)
            throw SchemaProblem(model.path("vocab"), "a token has " + std::to_string(token.size()) + " bytes");
        if (token_of(number)) throw SchemaProblem(model.path("vocab"), "two tokens have the same id");
        const auto entry = vocabulary_.emplace(token, number).first;
        if (tokens_.size() <= static_cast<size_t>(number)) tokens_.resize(static_cast<size_t>(number) + 1);
        tokens_[static_cast<size_t>(number)] = &entry->first;
    }
}

void Bpe::read_merges(Fields& model) {
    const std::string path = model.path("merges");
    uint32_t rank = 0;
    for (const Json& item : as_list(model.at("merges"), path, MAX_MERGES)) {
        std::string left, right;
        if (item.is_array() && item.size() == 2) {
            left = as_text(item[0], path);
            right = as_text(item[1], path);
        } else {  // the older form
            const std::string both = as_text(item, path);
            const size_t space = both.find(' ');
            if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
                throw SchemaProblem(path, "an entry is not a pair");
            left = both.substr(0, space);
            right = both.substr(space + 1);
        }
        const int64_t first = id_of(left), second = id_of(right), merged = id_of(left + right);
        if (first < 0 || second < 0 || merged < 0) throw SchemaProblem(path, "an entry is not in the vocabulary");
        merges_[pair_key(first, second)] = {rank++, merged};
    }
}

int64_t Bpe::id_of(const std::string& token) const {
    const auto found = vocabulary_.find(token);
    return found == vocabulary_.end() ? -1 : found->second;
}

const std::string* Bpe::token_of(int64_t id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens_.size() ? tokens_[static_cast<size_t>(id)] : nullptr;
}

const Bpe::Merge* Bpe::merge_of(int64_t left, int64_t right) const {
    const auto found = merges_.find(pair_key(left, right));
    return found == merges_.end() ? nullptr : &found->second;
}

std::vector<Bpe::Symbol> Bpe::characters(std::string_view word) const {
    std::vector<Symbol> symbols;
    Symbol unknown{-1, 0};
    const auto flush = [&] {
        if (unknown.id >= 0) symbols.push_back(unknown);
        unknown = {-1, 0};
    };
    for (size_t start = 0, end = 0; start < word.size(); start = end) {
        next_character(word, end);
        const std::string character(word.substr(start, end - start));
        if (const int64_t id = id_of(character); id >= 0) {
            flush();
            symbols.push_back({id, end - start});
            continue;
        }
        bool all = !bytes_.empty();
        for (const char byte : character) all = all && bytes_[static_cast<unsigned char>(byte)] >= 0;
        if (all) {  // the unknown before it comes after it: so does the library
            for (const char byte : character) symbols.push_back({bytes_[static_cast<unsigned char>(byte)], 1});
        } else if (unknown_ >= 0) {
            if (!fuse_unknown_) flush();
            unknown = {unknown_, unknown.length + (end - start)};
        }
    }
    flush();
    return symbols;
}

std::vector<Bpe::Symbol> Bpe::encode(std::string_view word) const {
    if (ignore_merges_) {
        if (const int64_t id = id_of(std::string(word)); id >= 0) return {{id, word.size()}};
    }
    std::vector<Symbol> symbols = characters(word);
    std::vector<size_t> next(symbols.size()), previous(symbols.size());
    // rank, place, id of the result: the best pair first, the leftmost of equals
    using Candidate = std::tuple<uint32_t, size_t, int64_t>;
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto consider = [&](size_t left) {
        if (left == NONE || next[left] == NONE) return;
        if (const Merge* merge = merge_of(symbols[left].id, symbols[next[left]].id))
            queue.emplace(merge->rank, left, merge->id);
    };
    for (size_t i = 0; i < symbols.size(); ++i) {
        previous[i] = i ? i - 1 : NONE;
        next[i] = i + 1 < symbols.size() ? i + 1 : NONE;
    }
    for (size_t i = 0; i < symbols.size(); ++i) consider(i);
    while (!queue.empty()) {
        const auto [rank, left, id] = queue.top();
        queue.pop();
        const size_t right = symbols[left].length ? next[left] : NONE;
        if (right == NONE) continue;
        // the pair may have changed since it was queued
        const Merge* merge = merge_of(symbols[left].id, symbols[right].id);
        if (!merge || merge->id != id) continue;
        symbols[left] = {id, symbols[left].length + symbols[right].length};
        symbols[right].length = 0;
        next[left] = next[right];
        if (next[left] != NONE) previous[next[left]] = left;
        consider(previous[left]);
        consider(left);
    }
    std::vector<Symbol> merged;
    for (const Symbol& symbol : symbols) {
        if (symbol.length) merged.push_back(symbol);
    }
    return merged;
}

}  // namespace ptp_core
