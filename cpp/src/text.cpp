#include "text.hpp"

#include <algorithm>

namespace ptp_core {
namespace {

// Bytes of the character that begins with `lead`, and the range of its second byte (Unicode, table 3-7).
struct Form {
    size_t length;
    unsigned char low, high;
};

Form form_of(unsigned char lead) {
    if (lead < 0x80) return {1, 0, 0};
    if (lead >= 0xC2 && lead <= 0xDF) return {2, 0x80, 0xBF};
    if (lead == 0xE0) return {3, 0xA0, 0xBF};
    if (lead == 0xED) return {3, 0x80, 0x9F};
    if (lead >= 0xE1 && lead <= 0xEF) return {3, 0x80, 0xBF};
    if (lead == 0xF0) return {4, 0x90, 0xBF};
    if (lead >= 0xF1 && lead <= 0xF3) return {4, 0x80, 0xBF};
    if (lead == 0xF4) return {4, 0x80, 0x8F};
    return {0, 0, 0};
}

// C0 and C1 controls, and the marks that change the direction of what follows.
bool is_obeyed(char32_t c) {
    return c < 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0xAD || c == 0x61C || (c >= 0x200B && c <= 0x200F) ||
           (c >= 0x2028 && c <= 0x202E) || (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF;
}

}  // namespace

char32_t next_character(std::string_view text, size_t& position, bool* valid) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    if (valid) *valid = true;
    const Form form = form_of(byte(position));
    char32_t character = byte(position) & (form.length <= 1 ? 0x7Fu : 0xFFu >> (form.length + 1));
    size_t read = 1;
    while (read < form.length && position + read < text.size()) {
        const unsigned char next = byte(position + read);
        if (next < (read == 1 ? form.low : 0x80) || next > (read == 1 ? form.high : 0xBF)) break;
        character = character << 6 | (next & 0x3Fu);
        ++read;
    }
    position += read;
    if (read == form.length) return character;
    if (valid) *valid = false;
    return REPLACEMENT;
}

bool is_utf8(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        bool valid = true;
        next_character(text, i, &valid);
        if (!valid) return false;
    }
    return true;
}

void append_utf8(std::string& text, char32_t c) {
    const auto put = [&](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
    } else {
        put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
    }
}

std::string lossy_utf8(std::string_view bytes) {
    std::string text;
    for (size_t i = 0; i < bytes.size();) append_utf8(text, next_character(bytes, i));
    return text;
}

bool is_space(char32_t c) {
    return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_stripped(char32_t c) { return is_space(c) || (c >= 0x1C && c <= 0x1F); }

bool is_blank(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        if (!is_stripped(next_character(text, i))) return false;
    }
    return true;
}

std::string one_line(std::string_view text) {
    std::string line;
    bool gap = false;
    for (size_t i = 0; i < text.size();) {
        const char32_t c = next_character(text, i);
        if (is_space(c)) {
            gap = true;
            continue;
        }
        if (gap && !line.empty()) line += ' ';
        gap = false;
        append_utf8(line, is_obeyed(c) ? REPLACEMENT : c);
    }
    return line;
}

std::vector<size_t> character_starts(std::string_view text) {
    std::vector<size_t> starts;
    for (size_t i = 0; i < text.size();) {
        starts.push_back(i);
        next_character(text, i);
    }
    starts.push_back(text.size());
    return starts;
}

bool starts_with(std::string_view text, std::string_view beginning) {
    return text.substr(0, beginning.size()) == beginning;
}

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::string cited(std::string_view text) { return "'" + std::string(text.substr(0, 80)) + "'"; }

std::string join(const std::vector<std::string>& parts, std::string_view separator, size_t most) {
    std::string text;
    for (size_t i = 0; i < std::min(parts.size(), most); ++i) {
        if (i) text += separator;
        text += parts[i];
    }
    return text;
}

}  // namespace ptp_core
