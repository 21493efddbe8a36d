#include "decode.hpp"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>

#include "text.hpp"
#include "tokenizer.hpp"

namespace ptp_core {
namespace {

constexpr std::string_view REPLACEMENT_TEXT = "\xEF\xBF\xBD";  // U+FFFD

// Return the byte of a token such as <0x0A>.
std::optional<char> byte_of_token(std::string_view token) {
    const auto digit = [&](size_t i) { return std::isxdigit(static_cast<unsigned char>(token[i])) != 0; };
    if (token.size() != 6 || !starts_with(token, "<0x") || token[5] != '>' || !digit(3) || !digit(4))
        return std::nullopt;
    return static_cast<char>(std::stoi(std::string(token.substr(3, 2)), nullptr, 16));
}

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
    std::string out;
    for (size_t at = 0;;) {
        const size_t found = text.find(pattern, at);
        out += text.substr(at, found - at);
        if (found == std::string_view::npos) return out;
        out += content;
        at = found + pattern.size();
    }
}

std::string from_byte_level(const std::vector<std::string>& tokens) {
    std::string bytes;
    for (const std::string& token : tokens) {
        std::string own;
        bool known = true;
        for (size_t i = 0; known && i < token.size();) {
            const int byte = byte_of_character(next_character(token, i));
            known = byte >= 0;
            own += static_cast<char>(byte);
        }
        bytes += known ? own : token;  // an added token is text already
    }
    return lossy_utf8(bytes);
}

// One bad byte spoils its whole run.
std::vector<std::string> join_bytes(const std::vector<std::string>& tokens) {
    std::vector<std::string> out;
    std::string run;
    const auto flush = [&] {
        if (run.empty()) return;
        if (is_utf8(run)) {
            out.push_back(run);
        } else {
            for (size_t i = 0; i < run.size(); ++i) out.emplace_back(REPLACEMENT_TEXT);
        }
        run.clear();
    };
    for (const std::string& token : tokens) {
        if (const auto byte = byte_of_token(token)) {
            run += *byte;
        } else {
            flush();
            out.push_back(token);
        }
    }
    flush();
    return out;
}

}  // namespace

DecoderChain::DecoderChain(const Json& config) {
    read(config, "decoder");
    refuse_replacing_in_joined_tokens();
    growth_.check("decoder");
}

void DecoderChain::read(const Json& config, const std::string& path) {
    Fields fields(config, path);
    const std::string type =
        fields.choice("type", {"Sequence", "ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"});
    if (type == "Sequence") {
        for (const Json& item : as_list(fields.at("decoders"), fields.path("decoders"), MAX_PARTS)) {
            if (item.is_object() && item.value("type", "") == "Sequence")
                throw SchemaProblem(path, "a sequence in a sequence is not supported");
            read(item, fields.path("decoders"));
        }
    } else if (type == "ByteLevel") {
        for (const char* key : {"add_prefix_space", "trim_offsets"}) as_bool(fields.at(key), fields.path(key));
        fields.flag("use_regex", true);
        steps_.push_back({Kind::byte_level, "", ""});
    } else if (type == "Metaspace") {
        fields.flag("split", true);
        const bool prepends = fields.choice("prepend_scheme", {"always", "first", "never"}) != "never";
        steps_.push_back({Kind::metaspace, fields.character("replacement"), "", prepends ? size_t{1} : size_t{0}});
    } else if (type == "Replace") {
        Fields pattern = fields.object("pattern");
        steps_.push_back({Kind::replace, content_of(pattern, "String"), content_of(fields, "content", true)});
        pattern.done();
        growth_.replaces(steps_.back().pattern, steps_.back().content);
    } else if (type == "Strip") {
        fields.integer("stop", 0, 0);
        steps_.push_back(
            {Kind::strip, "", fields.character("content"), static_cast<size_t>(fields.integer("start", 0, 1))});
    } else {
        steps_.push_back({type == "Fuse" ? Kind::fuse : Kind::byte_fallback, "", ""});
    }
    fields.done();
}

// What was shown of an answer must not change with its next token.
void DecoderChain::refuse_replacing_in_joined_tokens() const {
    bool joined = false;
    for (const Step& step : steps_) {
        if (joined && (step.kind == Kind::byte_level || step.kind == Kind::metaspace || step.kind == Kind::replace))
            throw SchemaProblem("decoder", "a part behind one that joins the tokens is not supported");
        joined = joined || step.kind == Kind::fuse || step.kind == Kind::byte_level;
    }
}

std::vector<std::string> DecoderChain::apply(const Step& step, std::vector<std::string> tokens) {
    switch (step.kind) {
        case Kind::byte_level: return {from_byte_level(tokens)};
        case Kind::byte_fallback: return join_bytes(tokens);
        case Kind::fuse: return {join(tokens, "", tokens.size())};
        case Kind::replace:
            for (std::string& token : tokens) token = replace_all(token, step.pattern, step.content);
            return tokens;
        case Kind::metaspace:
            for (size_t i = 0; i < tokens.size(); ++i)
                tokens[i] = replace_all(tokens[i], step.pattern, i == 0 && step.count ? "" : " ");
            return tokens;
        case Kind::strip:
            for (std::string& token : tokens) {
                for (size_t i = 0; i < step.count && starts_with(token, step.content); ++i)
                    token.erase(0, step.content.size());
            }
            return tokens;
    }
    return tokens;
}

std::string DecoderChain::operator()(std::vector<std::string> tokens) const {
    for (const Step& step : steps_) tokens = apply(step, std::move(tokens));
    return join(tokens, "", tokens.size());
}

std::string TextStream::push(int64_t token) {
    if (tokenizer_.is_special(token)) return "";
    waiting_.push_back(token);
    // one bad byte spoils its whole run of byte tokens in the decoder, so a run is decoded when it has ended
    const std::string* text = tokenizer_.token_of(token);
    if (text && byte_of_token(*text)) return "";
    const std::string decoded = decode();
    return ends_with(decoded, REPLACEMENT_TEXT) ? "" : emit(decoded);
}

std::string TextStream::finish() { return emit(decode()); }

std::string TextStream::decode() const {
    std::vector<int64_t> ids = shown_;
    ids.insert(ids.end(), waiting_.begin(), waiting_.end());
    return tokenizer_.decode(ids);
}

std::string TextStream::emit(const std::string& text) {
    const size_t emitted = character_starts(tokenizer_.decode(shown_)).size() - 1;
    const std::vector<size_t> starts = character_starts(text);
    const std::string piece = text.substr(starts[std::min(emitted, starts.size() - 1)]);
    if (!piece.empty()) shown_ = waiting_;
    // before the first piece, a space that is not shown may be the one that decoders strip
    if (!shown_.empty()) waiting_.clear();
    return piece;
}

std::string StopText::push(const std::string& piece) {
    const std::string text = held_ + piece;
    size_t found = std::string::npos, held = 0;
    for (const std::string& stop : stop_) {
        found = std::min(found, text.find(stop));
        size_t overlap = std::min(text.size(), stop.size() - 1);
        while (overlap && !ends_with(text, std::string_view(stop).substr(0, overlap))) --overlap;
        held = std::max(held, overlap);
    }
    if (found != std::string::npos) {
        stopped_ = true;
        held_.clear();
        return text.substr(0, found);
    }
    held_ = text.substr(text.size() - held);
    return text.substr(0, text.size() - held);
}

}  // namespace ptp_core
