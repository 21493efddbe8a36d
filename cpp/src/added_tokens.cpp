#include "added_tokens.hpp"

#include <algorithm>

#include "text.hpp"

namespace ptp_core {
namespace {

size_t without_spaces_at_end(std::string_view text, size_t start, size_t end) {
    size_t kept = start;
    for (size_t i = start; i < end;) {
        if (!is_space(next_character(text, i))) kept = i;
    }
    return kept;
}

size_t behind_spaces(std::string_view text, size_t start) {
    for (size_t i = start; i < text.size();) {
        if (!is_space(next_character(text, i))) return start;
        start = i;
    }
    return start;
}

uint64_t step(size_t node, char byte) { return node << 8 | static_cast<unsigned char>(byte); }

}  // namespace

bool AddedTokens::add(AddedToken token) {
    size_t node = 0;
    for (const char byte : token.content) {
        const auto [found, is_new] = next_.try_emplace(step(node, byte), static_cast<uint32_t>(token_of_node_.size()));
        if (is_new) token_of_node_.push_back(-1);
        node = found->second;
    }
    if (token_of_node_[node] >= 0) return false;
    token_of_node_[node] = static_cast<int64_t>(tokens_.size());
    tokens_.push_back(std::move(token));
    return true;
}

const AddedToken* AddedTokens::longest_at(std::string_view text, size_t at) const {
    int64_t longest = -1;
    for (size_t node = 0; at < text.size(); ++at) {
        const auto found = next_.find(step(node, text[at]));
        if (found == next_.end()) break;
        node = found->second;
        if (token_of_node_[node] >= 0) longest = token_of_node_[node];
    }
    return longest < 0 ? nullptr : &tokens_[static_cast<size_t>(longest)];
}

std::vector<AddedTokens::Section> AddedTokens::sections(std::string_view text) const {
    std::vector<Section> found;
    size_t done = 0;
    for (size_t at = 0; at < text.size();) {
        const AddedToken* token = longest_at(text, at);
        if (!token) {
            ++at;
            continue;
        }
        size_t start = at, end = at += token->content.size();
        if (token->strip_left) start = without_spaces_at_end(text, std::min(done, start), start);
        if (token->strip_right) end = behind_spaces(text, end);
        if (start > done) found.push_back({done, start, nullptr});
        found.push_back({start, end, token});
        done = end;
    }
    if (done < text.size()) found.push_back({done, text.size(), nullptr});
    return found;
}

}  // namespace ptp_core
