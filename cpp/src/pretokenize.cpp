#include "pretokenize.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

// White_Space, the \s of the library's regular expressions; PCRE2's own also has U+180E
#define WS "\\x{9}-\\x{D}\\x{85}\\p{Z}"

constexpr const char* GPT2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|[" WS "]+(?![^" WS "])|[" WS "]+";

struct Known {
    const char* theirs;
    const char* ours;
};

// The patterns of Llama 3 and Qwen 2, as their files have them and as PCRE2 takes them. Another pattern is refused:
// where two engines differ, ids would differ silently.
constexpr std::array<Known, 2> PATTERNS = {{
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
     "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
     "\\s+(?!\\S)|\\s+",
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|[" WS
     "]*[\\r\\n]+|[" WS "]+(?![^" WS "])|[" WS "]+"},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
     "\\s+(?!\\S)|\\s+",
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|[" WS
     "]*[\\r\\n]+|[" WS "]+(?![^" WS "])|[" WS "]+"},
}};

std::shared_ptr<const void> compile(const char* pattern) {
    int problem = 0;
    PCRE2_SIZE place = 0;
    pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP, &problem, &place, nullptr);
    if (!code) throw Error(PTP_ERROR_BACKEND, "PCRE2 cannot compile the tokenizer's pattern").got(problem);
    return {code, [](const void* made) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(made))); }};
}

// A search that cannot be long: the patterns take linear time, and a text has at most MAX_TEXT_BYTES.
std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> bounded_match() {
    std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> context(pcre2_match_context_create(nullptr),
                                                                                 pcre2_match_context_free);
    if (!context) throw std::bad_alloc();
    pcre2_set_match_limit(context.get(), 10'000'000);  // of the library's engine, too
    pcre2_set_heap_limit(context.get(), 1 << 16);      // KiB
    return context;
}

// Cut the text at every match: matches and what lies between them, nothing empty.
void split(const Traced& text, const void* pattern, std::vector<Traced>& out) {
    const auto* code = static_cast<const pcre2_code*>(pattern);
    const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
        pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
    if (!match) throw std::bad_alloc();
    const auto limits = bounded_match();
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.text.data());
    size_t done = 0;
    const auto cut = [&](size_t end) {
        if (end > done) out.push_back(text.part(done, end));
        done = end;
    };
    for (size_t at = 0; at < text.text.size();) {
        const int found =
            pcre2_match(code, subject, text.text.size(), at, PCRE2_NO_UTF_CHECK, match.get(), limits.get());
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0) throw Error(PTP_ERROR_PROMPT, "the question cannot be split into words").got(found);
        const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
        cut(range[0]);
        cut(range[1]);
        at = range[1] > at ? range[1] : at + 1;
    }
    cut(text.text.size());
}

// Put a text before the first character, of which it then is a part.
Traced prepended(const std::string& content, const Traced& text) {
    Traced out;
    out.push(content, text.origin.front());
    out.text += text.text;
    out.origin.insert(out.origin.end(), text.origin.begin(), text.origin.end());
    return out;
}

Traced replaced(const Traced& text, const std::string& pattern, const std::string& content) {
    Traced out;
    for (size_t i = 0; i < text.text.size();) {
        if (text.text.compare(i, pattern.size(), pattern) == 0) {
            i += pattern.size();
            out.push(content, text.origin[i - 1]);  // the library's choice, too: of the match's last character
        } else {
            out.push(std::string_view(text.text).substr(i, 1), text.origin[i]);
            ++i;
        }
    }
    return out;
}

Traced as_bytes(const Traced& text) {
    Traced out;
    for (size_t i = 0; i < text.text.size(); ++i) {
        std::string character;
        append_utf8(character, character_of_byte(static_cast<unsigned char>(text.text[i])));
        out.push(character, text.origin[i]);
    }
    return out;
}

struct ByteTable {
    std::array<char32_t, 256> characters;
    std::array<int, 512> bytes;

    // GPT-2's table: printable Latin-1 stands for itself, the rest follows from U+0100
    constexpr ByteTable() : characters(), bytes() {
        for (auto& byte : bytes) byte = -1;
        char32_t next = 256;
        for (unsigned byte = 0; byte < 256; ++byte) {
            const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
            characters[byte] = printable ? byte : next++;
            bytes[characters[byte]] = static_cast<int>(byte);
        }
    }
};

constexpr ByteTable BYTES;

}  // namespace

char32_t character_of_byte(unsigned char byte) { return BYTES.characters[byte]; }

int byte_of_character(char32_t character) { return character < BYTES.bytes.size() ? BYTES.bytes[character] : -1; }

Traced Traced::part(size_t start, size_t end) const {
    const auto at = [&](size_t i) { return origin.begin() + static_cast<std::ptrdiff_t>(i); };
    return {text.substr(start, end - start), std::vector<uint32_t>(at(start), at(end))};
}

Normalizer::Normalizer(const Json& config) {
    if (!config.is_null()) read(config, "normalizer");
}

void Normalizer::read(const Json& config, const std::string& path) {
    Fields fields(config, path);
    const std::string type = fields.choice("type", {"Sequence", "Prepend", "Replace"});
    if (type == "Sequence") {
        for (const Json& item : as_list(fields.at("normalizers"), fields.path("normalizers"), MAX_PARTS)) {
            if (item.is_object() && item.value("type", "") == "Sequence")
                throw SchemaProblem(path, "a sequence in a sequence is not supported");
            read(item, fields.path("normalizers"));
        }
    } else if (type == "Prepend") {
        steps_.push_back({"", content_of(fields, "prepend")});
        growth_.times(1 + steps_.back().content.size());
    } else {
        Fields pattern = fields.object("pattern");
        steps_.push_back({content_of(pattern, "String"), content_of(fields, "content", true)});
        pattern.done();
        growth_.replaces(steps_.back().pattern, steps_.back().content);
    }
    fields.done();
}

Traced Normalizer::operator()(Traced text) const {
    for (const Step& step : steps_) {
        if (text.text.empty()) break;
        text = step.pattern.empty() ? prepended(step.content, text) : replaced(text, step.pattern, step.content);
    }
    return text;
}

PreTokenizer::PreTokenizer(const Json& config) {
    if (!config.is_null()) read(config, "pre_tokenizer");
}

void PreTokenizer::read(const Json& config, const std::string& path) {
    Fields fields(config, path);
    const std::string type = fields.choice("type", {"Sequence", "ByteLevel", "Split", "Metaspace"});
    if (type == "Sequence") {
        const std::string list = fields.path("pretokenizers");
        for (const Json& item : as_list(fields.at("pretokenizers"), list, MAX_PARTS)) {
            if (item.is_object() && item.value("type", "") == "Sequence")
                throw SchemaProblem(path, "a sequence in a sequence is not supported");
            read(item, list);
        }
    } else {
        const Step& step = steps_.emplace_back(type == "ByteLevel" ? byte_level(fields)
                                               : type == "Split"   ? known_split(fields)
                                                                   : metaspace(fields));
        if (step.kind == Kind::byte_level) growth_.times(step.add_space ? 4 : 2);
        if (step.kind == Kind::metaspace) growth_.times(step.replacement.size() + (step.prepend != Prepend::never));
    }
    fields.done();
}

PreTokenizer::Step PreTokenizer::byte_level(Fields& fields) {
    Step step{Kind::byte_level, nullptr};
    step.add_space = as_bool(fields.at("add_prefix_space"), fields.path("add_prefix_space"));
    if (fields.flag("use_regex", true)) step.pattern = compile(GPT2);
    as_bool(fields.at("trim_offsets"), fields.path("trim_offsets"));  // counts in the post-processor only
    return step;
}

PreTokenizer::Step PreTokenizer::known_split(Fields& fields) {
    Fields pattern = fields.object("pattern");
    const std::string expression = pattern.text("Regex");
    pattern.done();
    fields.choice("behavior", {"Isolated"});
    if (as_bool(fields.at("invert"), fields.path("invert")))
        throw SchemaProblem(fields.path("invert"), "is not supported");
    for (const Known& known : PATTERNS) {
        if (expression == known.theirs) return {Kind::split, compile(known.ours)};
    }
    throw SchemaProblem(fields.path("pattern"), "is not one that this version knows (GPT-2, Llama 3, Qwen 2)");
}

PreTokenizer::Step PreTokenizer::metaspace(Fields& fields) {
    Step step{Kind::metaspace, nullptr};
    step.replacement = fields.character("replacement");
    const std::string scheme = fields.choice("prepend_scheme", {"always", "first", "never"});
    step.prepend = scheme == "always" ? Prepend::always : scheme == "first" ? Prepend::first : Prepend::never;
    step.split = fields.flag("split", true);
    return step;
}

std::vector<Traced> PreTokenizer::operator()(Traced text) const {
    std::vector<Traced> words = {std::move(text)};
    for (const Step& step : steps_) {
        std::vector<Traced> parts;
        for (Traced& word : words) {
            if (word.text.empty()) continue;
            if (step.kind == Kind::metaspace) {
                word = replaced(word, " ", step.replacement);
                const bool wanted =
                    step.prepend == Prepend::always || (step.prepend == Prepend::first && word.origin.front() == 0);
                if (wanted && !starts_with(word.text, step.replacement)) word = prepended(step.replacement, word);
                size_t start = 0;
                for (size_t at = 1; step.split && (at = word.text.find(step.replacement, at)) != std::string::npos;
                     ++at) {
                    parts.push_back(word.part(start, at));
                    start = at;
                }
                parts.push_back(word.part(start, word.text.size()));
                continue;
            }
            if (step.add_space && word.text[0] != ' ') word = prepended(" ", word);
            const size_t before = parts.size();
            if (step.pattern) {
                split(word, step.pattern.get(), parts);
            } else {
                parts.push_back(std::move(word));
            }
            if (step.kind != Kind::byte_level) continue;
            for (size_t i = before; i < parts.size(); ++i) parts[i] = as_bytes(parts[i]);
        }
        words = std::move(parts);
    }
    return words;
}

}  // namespace ptp_core
