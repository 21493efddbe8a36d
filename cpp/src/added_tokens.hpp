// Tokens that are found in a text before it is cut into words.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ptp_core {

struct AddedToken {
    int64_t id;
    std::string content;
    bool strip_left, strip_right, special;
};

// Added tokens by their bytes: to find the longest at a place takes no more steps than it has bytes.
class AddedTokens {
public:
    // A place in a text that is one of the tokens, or lies between two of them.
    struct Section {
        size_t start, end;
        const AddedToken* token;
    };

    // Return false if there is one with the same content, which must not be empty.
    bool add(AddedToken token);

    std::vector<Section> sections(std::string_view text) const;

private:
    const AddedToken* longest_at(std::string_view text, size_t at) const;

    std::unordered_map<uint64_t, uint32_t> next_;  // from node and byte to node
    std::vector<int64_t> token_of_node_{-1};
    std::deque<AddedToken> tokens_;
};

}  // namespace ptp_core
