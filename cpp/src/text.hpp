// UTF-8 and the few Unicode facts that the tokenizer's rules name.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace ptp_core {

constexpr char32_t REPLACEMENT = 0xFFFD;

// Return the character at `position` and move behind it; at bytes that are none, U+FFFD and behind the longest part
// of them that could have begun one (what Rust's from_utf8_lossy and Python's "replace" do).
char32_t next_character(std::string_view text, size_t& position, bool* valid = nullptr);

bool is_utf8(std::string_view text);

void append_utf8(std::string& text, char32_t character);

// Return the text with U+FFFD for whatever is not UTF-8.
std::string lossy_utf8(std::string_view bytes);

// Unicode's White_Space.
bool is_space(char32_t character);

// What Python's str.strip takes: White_Space and the information separators.
bool is_stripped(char32_t character);

bool is_blank(std::string_view text);

// Return the text on one line, with U+FFFD for what a terminal would obey.
std::string one_line(std::string_view text);

// Return the byte at which each character begins, and the length of the text at the end.
std::vector<size_t> character_starts(std::string_view text);

bool starts_with(std::string_view text, std::string_view beginning);
bool ends_with(std::string_view text, std::string_view end);

// Return `'text'`, cut to 80 bytes, as errors cite what a user wrote.
std::string cited(std::string_view text);

std::string join(const std::vector<std::string>& parts, std::string_view separator, size_t most);

}  // namespace ptp_core
