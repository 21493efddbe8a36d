#include "tokenizer.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr size_t MAX_ADDED = 1 << 16;
constexpr int64_t MAX_ID = (1 << 20) - 1;
constexpr std::ptrdiff_t MAX_VALUES = 1 << 22;  // commas and opening brackets: what bounds the memory of the JSON
constexpr const char* SPACE_TOKEN = "Ġ";  // a space in a byte-level vocabulary

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
        const auto is_mark = [](char c) { return c == ',' || c == '[' || c == '{'; };
        const auto values = std::count_if(text.begin(), text.end(), is_mark);
        if (values > MAX_VALUES) throw std::runtime_error("it has more than " + std::to_string(MAX_VALUES) + " values");
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
    fields.choice("version", {"1.0"});
    for (const char* key : {"truncation", "padding", "model", "normalizer", "pre_tokenizer", "decoder"})
        fields.skip(key);
    for (const Growth& growth : {normalizer_.growth(), pre_tokenizer_.growth()}) growth_.times(growth.factor());
    growth_.check("normalizer and pre_tokenizer");
    fields.at("added_tokens");
    read_added(data);
    if (const Json* config = fields.find("post_processor")) read_post_processor(*config, "post_processor");
    fields.done();
}

// The library numbers what is added by its place in the list, whatever id it has there.
int64_t Tokenizer::id_that_the_library_gives(const std::string& content, int64_t largest) const {
    const int64_t own = model_.id_of(content);
    if (own >= 0) return own;
    const int64_t next = std::max(largest + 1, static_cast<int64_t>(model_.size()));
    if (model_.token_of(next)) throw SchemaProblem("added_tokens", "shares an id with the vocabulary");
    return next;
}

void Tokenizer::read_added(const Json& data) {
    num_ids_ = model_.num_ids();
    int64_t largest = -1;
    size_t total = 0;
    std::unordered_set<std::string> seen;
    for (const Json& item : as_list(data.at("added_tokens"), "added_tokens", MAX_ADDED)) {
        Fields fields(item, "added_tokens");
        AddedToken token{fields.integer("id", 0, MAX_ID), content_of(fields, "content"),
                    as_bool(fields.at("lstrip"), "lstrip"), as_bool(fields.at("rstrip"), "rstrip"),
                    as_bool(fields.at("special"), "special")};
        if (as_bool(fields.at("single_word"), "single_word"))
            throw SchemaProblem("added_tokens.single_word", "is not supported");
        const bool normalized = as_bool(fields.at("normalized"), "normalized");
        fields.done();
        if (!seen.insert(token.content).second) throw SchemaProblem("added_tokens", cited(token.content) + " is twice");
        if (const int64_t given = id_that_the_library_gives(token.content, largest); token.id != given) {
            throw SchemaProblem("added_tokens", cited(token.content) + " has the id " + std::to_string(token.id) +
                                                    ", not " + std::to_string(given));
        }
        largest = std::max(largest, token.id);
        // each of many neighbours would look through the spaces behind all of them
        if ((token.strip_left || token.strip_right) &&
            (is_blank(token.content) || (normalized && !data.at("normalizer").is_null())))
            throw SchemaProblem("added_tokens", "lstrip or rstrip of " + cited(token.content) + " is not supported");
        total += token.content.size() * growth_.factor();
        if (total > MAX_TEXT_BYTES)
            throw SchemaProblem("added_tokens", "can have more than " + std::to_string(MAX_TEXT_BYTES) + " bytes");
        by_id_[token.id] = token;
        num_ids_ = std::max(num_ids_, token.id + 1);
        if (normalized) token.content = normalizer_(traced(token.content)).text;
        if (token.content.empty()) continue;  // nothing of a text is left that could be this token
        if (!(normalized ? normalized_ : raw_).add(std::move(token)))
            throw SchemaProblem("added_tokens", "two entries are the same once normalized");
    }
}

void Tokenizer::read_post_processor(const Json& config, const std::string& path) {
    Fields fields(config, path);
    const std::string type = fields.choice("type", {"Sequence", "ByteLevel", "TemplateProcessing"});
    if (type == "Sequence") {
        for (const Json& item : as_list(fields.at("processors"), fields.path("processors"), MAX_PARTS)) {
            if (item.is_object() && item.value("type", "") == "Sequence")
                throw SchemaProblem(path, "a sequence in a sequence is not supported");
            read_post_processor(item, fields.path("processors"));
        }
    } else if (type == "ByteLevel") {
        trims_ = as_bool(fields.at("trim_offsets"), fields.path("trim_offsets"));
        keeps_one_space_ = as_bool(fields.at("add_prefix_space"), fields.path("add_prefix_space"));
        fields.flag("use_regex", true);
    } else {
        read_template(fields);
        return;
    }
    fields.done();
}

void Tokenizer::read_template(Fields fields) {
    fields.skip("type");
    fields.skip("pair");
    std::unordered_map<std::string, std::vector<int64_t>> ids;
    const std::string place = fields.path("special_tokens");
    fields.object("special_tokens");
    for (const auto& [name, item] : fields.at("special_tokens").items()) {
        Fields special(item, place);
        special.text("id");
        for (const Json& id : as_list(special.at("ids"), special.path("ids"), MAX_PARTS))
            ids[name].push_back(as_integer(id, special.path("ids"), 0, MAX_ID));
        for (const int64_t id : ids[name]) {
            if (!token_of(id)) throw SchemaProblem(place, std::to_string(id) + " is no token");
        }
        const Json& texts = as_list(special.at("tokens"), special.path("tokens"), MAX_PARTS);
        for (const Json& text : texts) content_of(text, special.path("tokens"));
        if (ids[name].empty() || texts.size() != ids[name].size())
            throw SchemaProblem(place, "tokens and ids differ in number");
        special.done();
        if (ids.size() > MAX_PARTS) throw SchemaProblem(place, "has more than 16 entries");
    }
    const std::string single = fields.path("single");
    bool after = false;
    for (const Json& item : as_list(fields.at("single"), single, MAX_PARTS)) {
        Fields piece(item, single);
        const bool is_text = piece.find("Sequence") != nullptr;
        Fields tagged = piece.object(is_text ? "Sequence" : "SpecialToken");
        const std::string name = content_of(tagged, "id");
        tagged.integer("type_id", 0, UINT32_MAX);
        tagged.done();
        piece.done();
        if (is_text) {
            if (after || name != "A") throw SchemaProblem(single, "does not hold the text once");
            after = true;
            continue;
        }
        const auto special = ids.find(name);
        if (special == ids.end()) throw SchemaProblem(single, cited(name) + " is not one of special_tokens");
        auto& list = after ? after_ : before_;
        list.insert(list.end(), special->second.begin(), special->second.end());
    }
    if (!after) throw SchemaProblem(single, "does not hold the text");
    fields.done();
}

std::vector<Token> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
    if (const size_t longest = MAX_TEXT_BYTES / growth_.factor(); text.size() > longest) {
        throw Error(PTP_ERROR_PROMPT, "the prompt is too long for this tokenizer")
            .got(std::to_string(text.size()) + " bytes")
            .expected("at most " + std::to_string(longest))
            .advise("shorten the question");
    }
    std::vector<Token> tokens;
    const auto mark = [&](const Traced& source, const AddedTokens::Section& section) {
        const auto [start, end, token] = section;  // with the spaces that it strips
        tokens.push_back({token->id, source.origin[start], source.origin[end - 1] + size_t{1}, true});
        if (trims_) trim(tokens.back(), source.text.substr(start, end - start), tokens.size() == 1);
    };
    const Traced whole = traced(text);
    for (const AddedTokens::Section& outer : raw_.sections(whole.text)) {
        if (outer.token) {
            mark(whole, outer);
            continue;
        }
        const Traced plain = normalizer_(whole.part(outer.start, outer.end));
        for (const AddedTokens::Section& inner : normalized_.sections(plain.text)) {
            if (inner.token) {
                mark(plain, inner);
            } else {
                encode_plain(plain.part(inner.start, inner.end), tokens);
            }
        }
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
            if (trims_) trim(out.back(), *token_of(symbol.id), out.size() == 1);
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
