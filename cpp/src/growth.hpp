// How much a part of a tokenizer may add to a text (src/ptp/bundle/tokenizer.py has the same bounds).
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include "json.hpp"

namespace ptp_core {

constexpr size_t MAX_PARTS = 16;
// Of an added token, and of a text that a part looks for or writes.
constexpr size_t MAX_CONTENT_BYTES = 256;
constexpr size_t MAX_GROWTH = 64;
// What a prompt may become before it is cut into tokens.
constexpr size_t MAX_TEXT_BYTES = 1 << 22;

// Read a text of at most MAX_CONTENT_BYTES.
inline std::string content_of(const Json& value, const std::string& path, bool may_be_empty = false) {
    std::string text = as_text(value, path);
    if (text.size() > MAX_CONTENT_BYTES || (text.empty() && !may_be_empty)) {
        throw SchemaProblem(path, "has " + std::to_string(text.size()) + " bytes, not " + (may_be_empty ? "0" : "1") +
                                      " to " + std::to_string(MAX_CONTENT_BYTES));
    }
    return text;
}

inline std::string content_of(Fields& fields, const std::string& key, bool may_be_empty = false) {
    return content_of(fields.at(key), fields.path(key), may_be_empty);
}

// Bytes that come out of a part for a byte that goes in, at most; of several parts, the product.
class Growth {
public:
    void times(size_t factor) { factor_ = std::min(factor_ * factor, MAX_GROWTH * MAX_GROWTH); }
    void replaces(const std::string& pattern, const std::string& content) {
        times(std::max<size_t>(1, (content.size() + pattern.size() - 1) / pattern.size()));
    }
    size_t factor() const { return factor_; }
    // Throws SchemaProblem.
    void check(const std::string& what) const {
        if (factor_ > MAX_GROWTH)
            throw SchemaProblem(what, "can make a text more than " + std::to_string(MAX_GROWTH) + " times as long");
    }

private:
    size_t factor_ = 1;
};

}  // namespace ptp_core
