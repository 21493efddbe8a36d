#include "tokenizer.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr size_t MAX_ADDED = 1 << 16;
constexpr const char* SPACE_TOKEN = "Ġ";  // a space in a byte-level vocabulary

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

Traced traced(std::string_view text) {
    Traced out;
    uint32_t character = 0;
    for (size_t i = 0; i < text.size(); ++character) {
        const size_t start = i;
        next_character(text, i);
        out.push(text.substr(start, i - start), character);
    }
    return out;
}

}  // namespace

Tokenizer Tokenizer::from_json(std::string_view text, const std::string& name) {
    const std::string what = "this version cannot use " + name;
    try {
        return Tokenizer(parse_json(text));
    } catch (const SchemaProblem& problem) {
        throw Error(PTP_ERROR_BUNDLE, what)
            .got(problem.what())
            .advise("use the Python runtime, or vision_only with a bundle of --instruction none");
    } catch (const Error&) {
        throw;
    } catch (const std::runtime_error& error) {  // of parse_json; Json::exception is none
        throw Error(PTP_ERROR_BUNDLE, name + " is not a tokenizer").got(error.what()).advise("export the bundle again");
    } catch (const Json::exception& error) {
        throw Error(PTP_ERROR_BUNDLE, name + " is not a tokenizer").got(error.what()).advise("export the bundle again");
    }
}

Tokenizer::Tokenizer(const Json& data)
    : model_(Fields(data, "").object("model")),
      normalizer_(Fields(data, "").at("normalizer")),
      pre_tokenizer_(Fields(data, "").at("pre_tokenizer")),
      decoder_(Fields(data, "").at("decoder")) {
    Fields fields(data, "");
    for (const char* key : {"version", "truncation", "padding", "model", "normalizer", "pre_tokenizer", "decoder"})
        fields.skip(key);
    read_added(as_list(fields.at("added_tokens"), "added_tokens", MAX_ADDED));
    if (const Json* config = fields.find("post_processor")) read_post_processor(*config, "post_processor");
    fields.done();
}

void Tokenizer::read_added(const Json& list) {
    for (const Json& item : list) {
        Fields fields(item, "added_tokens");
        Added token{fields.integer("id", 0, INT32_MAX), fields.text("content"), as_bool(fields.at("lstrip"), "lstrip"),
                    as_bool(fields.at("rstrip"), "rstrip"), as_bool(fields.at("special"), "special")};
        if (token.content.empty()) throw SchemaProblem("added_tokens", "an entry is empty");
        if (as_bool(fields.at("single_word"), "single_word"))
            throw SchemaProblem("added_tokens.single_word", "is not supported");
        const int64_t own = model_.id_of(token.content);
        if (own >= 0 && own != token.id)
            throw SchemaProblem("added_tokens", cited(token.content) + " has another id in the vocabulary");
        const bool normalized = as_bool(fields.at("normalized"), "normalized");
        fields.done();
        by_id_[token.id] = token;
        if (normalized) token.content = normalizer_(traced(token.content)).text;
        if (token.content.empty()) continue;  // nothing of a text is left that could be this token
        (normalized ? normalized_ : raw_).push_back(std::move(token));
    }
    for (auto* tokens : {&raw_, &normalized_}) {  // the longest of those that begin at a place is taken
        std::stable_sort(tokens->begin(), tokens->end(),
                         [](const Added& a, const Added& b) { return a.content.size() > b.content.size(); });
    }
}

void Tokenizer::read_post_processor(const Json& config, const std::string& path) {
    Fields fields(config, path);
    const std::string type = fields.choice("type", {"Sequence", "ByteLevel", "TemplateProcessing"});
    if (type == "Sequence") {
        for (const Json& item : as_list(fields.at("processors"), fields.path("processors"), 16)) {
            if (item.is_object() && item.value("type", "") == "Sequence")
                throw SchemaProblem(path, "a sequence in a sequence is not supported");
            read_post_processor(item, fields.path("processors"));
        }
    } else if (type == "ByteLevel") {
        trims_ = as_bool(fields.at("trim_offsets"), fields.path("trim_offsets"));
        keeps_one_space_ = as_bool(fields.at("add_prefix_space"), fields.path("add_prefix_space"));
        fields.skip("use_regex");
    } else {
        read_template(fields);
        return;
    }
    fields.done();
}

void Tokenizer::read_template(Fields fields) {
    fields.skip("type");
    fields.skip("pair");
    const Json& specials = fields.at("special_tokens");
    bool after = false;
    for (const Json& item : as_list(fields.at("single"), fields.path("single"), 16)) {
        Fields piece(item, fields.path("single"));
        if (const Json* sequence = piece.find("Sequence")) {
            if (after || sequence->value("id", "") != "A")
                throw SchemaProblem(fields.path("single"), "does not hold the text once");
            after = true;
            continue;
        }
        const std::string name = piece.object("SpecialToken").text("id");
        Fields special = Fields(specials, fields.path("special_tokens")).object(name);
        for (const Json& id : as_list(special.at("ids"), special.path("ids"), 16)) {
            (after ? after_ : before_).push_back(as_integer(id, special.path("ids"), 0, INT32_MAX));
        }
    }
    if (!after) throw SchemaProblem(fields.path("single"), "does not hold the text");
    fields.done();
}

std::vector<Tokenizer::Section> Tokenizer::sections(std::string_view text, const std::vector<Added>& tokens) const {
    std::vector<Section> found;
    size_t done = 0;
    for (size_t at = 0; at < text.size();) {
        const auto token = std::find_if(tokens.begin(), tokens.end(),
                                        [&](const Added& x) { return starts_with(text.substr(at), x.content); });
        if (token == tokens.end()) {
            ++at;
            continue;
        }
        size_t start = at, end = at += token->content.size();
        if (token->strip_left) start = without_spaces_at_end(text, std::min(done, start), start);
        if (token->strip_right) end = behind_spaces(text, end);
        if (start > done) found.push_back({done, start, nullptr});
        found.push_back({start, end, &*token});
        done = end;
    }
    if (done < text.size()) found.push_back({done, text.size(), nullptr});
    return found;
}

std::vector<Token> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
    std::vector<Token> tokens;
    const auto mark = [&](const Traced& source, const Section& section) {
        tokens.push_back(
            {section.token->id, source.origin[section.start], source.origin[section.end - 1] + size_t{1}, true});
    };
    const Traced whole = traced(text);
    for (const Section& outer : sections(whole.text, raw_)) {
        if (outer.token) {
            mark(whole, outer);
            continue;
        }
        const Traced plain = normalizer_(whole.part(outer.start, outer.end));
        for (const Section& inner : sections(plain.text, normalized_)) {
            if (inner.token) {
                mark(plain, inner);
            } else {
                encode_plain(plain.part(inner.start, inner.end), tokens);
            }
        }
    }
    if (trims_) {
        for (size_t i = 0; i < tokens.size(); ++i) trim(tokens[i], *token_of(tokens[i].id), i == 0);
    }
    if (!add_special_tokens) return tokens;
    const auto added = [](const std::vector<int64_t>& ids) {
        std::vector<Token> made;
        for (const int64_t id : ids) made.push_back({id, 0, 0, false});
        return made;
    };
    const auto before = added(before_), after = added(after_);
    tokens.insert(tokens.begin(), before.begin(), before.end());
    tokens.insert(tokens.end(), after.begin(), after.end());
    return tokens;
}

void Tokenizer::encode_plain(Traced text, std::vector<Token>& out) const {
    for (const Traced& word : pre_tokenizer_(std::move(text))) {
        size_t at = 0;
        for (const Bpe::Symbol& symbol : model_.encode(word.text)) {
            const size_t last = at + symbol.length - 1;
            out.push_back({symbol.id, word.origin[at], word.origin[last] + size_t{1}, true});
            at += symbol.length;
        }
    }
}

void Tokenizer::trim(Token& token, const std::string& piece, bool first) const {
    std::vector<bool> blank;
    for (size_t i = 0; i < piece.size();) {
        const size_t start = i;
        const char32_t character = next_character(piece, i);
        blank.push_back(is_space(character) || piece.compare(start, i - start, SPACE_TOKEN) == 0);
    }
    auto leading = static_cast<size_t>(std::find(blank.begin(), blank.end(), false) - blank.begin());
    const auto trailing = static_cast<size_t>(std::find(blank.rbegin(), blank.rend(), false) - blank.rbegin());
    if (leading == 1 && first && keeps_one_space_) leading = 0;
    token.start = std::min(token.start + leading, token.end);
    if (token.end >= trailing) token.end = std::max(token.end - trailing, token.start);
}

bool Tokenizer::is_special(int64_t id) const {
    const auto found = by_id_.find(id);
    return found != by_id_.end() && found->second.special;
}

const std::string* Tokenizer::token_of(int64_t id) const {
    const auto found = by_id_.find(id);
    return found == by_id_.end() ? model_.token_of(id) : &found->second.content;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids) const {
    std::vector<std::string> tokens;
    for (const int64_t id : ids) {
        const std::string* token = token_of(id);
        if (token && !is_special(id)) tokens.push_back(*token);
    }
    return decoder_(std::move(tokens));
}

}  // namespace ptp_core
