#include "json.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr int MAX_DEPTH = 32;  // a manifest has 6 levels, a tokenizer 8
constexpr size_t MAX_LINE = 1000;
constexpr size_t MAX_CITED = 80;
constexpr size_t MAX_NAME_BYTES = 255;  // of one part of a path: what Linux' file systems take

// What nlohmann's parser lets pass, and RFC 8259 and Python do not.
void refuse_oddities(std::string_view text) {
    if (starts_with(text, "\xEF\xBB\xBF")) throw std::runtime_error("it begins with a byte order mark");
    if (text.find('\0') != std::string_view::npos) throw std::runtime_error("it contains NUL");
}

std::string checked_text(const Json& value, const std::string& path, bool is_line) {
    std::string text = as_text(value, path);
    size_t count = 0;
    for (size_t i = 0; i < text.size(); ++count) {
        const char32_t c = next_character(text, i);
        if (is_line && (c < 0x20 || (c >= 0x7F && c <= 0x9F)))
            throw SchemaProblem(path, "contains a control character");
    }
    if (count > MAX_LINE) throw SchemaProblem(path, "is longer than " + std::to_string(MAX_LINE) + " characters");
    return text;
}

// A scan of its own: the parser's callback knows the depth, too, but looks through a list again for each object in it.
void refuse_deep(std::string_view text) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (c == '"') in_string = !in_string;
        if (in_string) {
            i += c == '\\';
        } else if (c == '[' || c == '{') {
            if (++depth > MAX_DEPTH) throw std::runtime_error("it is nested too deeply");
        } else if (c == ']' || c == '}') {
            --depth;
        }
    }
}

// Refuses a key that an object has twice. Not the parser's callback: that looks through a list again for each object in it.
struct KeyCheck : nlohmann::json_sax<Json> {
    std::vector<std::set<std::string>> open;  // keys of the objects that are open
    std::string problem;

    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t&) override { return true; }
    bool string(string_t&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool start_object(size_t) override { return open.emplace_back(), true; }
    bool end_object() override { return open.pop_back(), true; }
    bool start_array(size_t) override { return true; }
    bool end_array() override { return true; }
    bool key(string_t& name) override {
        if (open.back().insert(name).second) return true;
        problem = "an object has a key twice";
        return false;
    }
    bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
        problem = error.what();
        return false;
    }
};

}  // namespace

SchemaProblem::SchemaProblem(const std::string& path, const std::string& problem)
    : std::runtime_error((path.empty() ? "the top" : one_line(path.substr(0, MAX_CITED))) + ": " + problem) {}

std::string read_file(const std::filesystem::path& path, uint64_t limit, int status) {
    const auto kind = static_cast<ptp_status>(status);
    std::error_code problem;
    if (!std::filesystem::is_regular_file(path, problem)) {
        const bool exists = std::filesystem::exists(path, problem);
        throw Error(kind, path.string() + (exists ? " is not a file" : " is missing"));
    }
    const uint64_t size = std::filesystem::file_size(path, problem);
    if (problem || size > limit) {
        throw Error(kind, path.string() + " is too large")
            .got(std::to_string(size) + " bytes")
            .expected("at most " + std::to_string(limit));
    }
    std::ifstream file(path, std::ios::binary);
    std::string bytes(size, '\0');
    file.read(bytes.data(), static_cast<std::streamsize>(size));
    if (!file) throw Error(kind, path.string() + " cannot be read");
    return bytes;
}

Json parse_json(std::string_view text) {
    refuse_oddities(text);
    // nlohmann's own parser and destructor do not recurse; the bound is for whoever walks through the result
    refuse_deep(text);
    return Json::parse(text.begin(), text.end());
}

Json parse_strict_json(std::string_view text) {
    refuse_oddities(text);
    refuse_deep(text);
    KeyCheck keys;
    if (!Json::sax_parse(text.begin(), text.end(), &keys)) throw std::runtime_error(keys.problem);
    return Json::parse(text.begin(), text.end());
}

int64_t as_integer(const Json& value, const std::string& path, int64_t low, int64_t high) {
    if (!value.is_number_integer()) throw SchemaProblem(path, "is not an integer");
    if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        throw SchemaProblem(path, "is out of range");
    }
    const auto number = value.get<int64_t>();
    if (number < low || number > high) {
        throw SchemaProblem(
            path, std::to_string(number) + " is not in " + std::to_string(low) + " to " + std::to_string(high));
    }
    return number;
}

double as_number(const Json& value, const std::string& path, double low, double high) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) throw SchemaProblem(path, "is not a number");
    const auto number = value.get<double>();
    if (!(number >= low && number <= high)) {
        char range[80];
        std::snprintf(range, sizeof range, "%g is not in %g to %g", number, low, high);
        throw SchemaProblem(path, range);
    }
    return number;
}

bool as_bool(const Json& value, const std::string& path) {
    if (!value.is_boolean()) throw SchemaProblem(path, "is neither true nor false");
    return value.get<bool>();
}

std::string as_text(const Json& value, const std::string& path) {
    if (!value.is_string()) throw SchemaProblem(path, "is not a text");
    return value.get<std::string>();
}

std::string as_short_text(const Json& value, const std::string& path) { return checked_text(value, path, false); }

std::string as_line(const Json& value, const std::string& path) { return checked_text(value, path, true); }

std::string as_relative_path(const Json& value, const std::string& path) {
    std::string text = as_line(value, path);
    for (size_t start = 0; start <= text.size();) {
        const size_t end = std::min(text.find('/', start), text.size());
        const std::string part = text.substr(start, end - start);
        if (part.empty() || part == "." || part == ".." || part.find_first_of("\\:") != std::string::npos)
            throw SchemaProblem(path, "path " + cited(text) + " leaves the bundle or is not the shortest for its file");
        if (part.size() > MAX_NAME_BYTES)
            throw SchemaProblem(path, "path " + cited(text) + " has a name of more than " +
                                          std::to_string(MAX_NAME_BYTES) + " bytes");
        start = end + 1;
    }
    return text;
}

const Json& as_list(const Json& value, const std::string& path, size_t most) {
    if (!value.is_array()) throw SchemaProblem(path, "is not a list");
    if (value.size() > most) throw SchemaProblem(path, "has more than " + std::to_string(most) + " entries");
    return value;
}

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object.is_object()) throw SchemaProblem(path_, "is not an object");
}

const Json& Fields::at(const std::string& key) {
    known_.insert(key);
    const auto found = object_.find(key);
    if (found == object_.end()) throw SchemaProblem(path(key), "is missing");
    return *found;
}

const Json* Fields::find(const std::string& key) {
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Fields::flag(const std::string& key, bool missing) {
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() ? missing : as_bool(*found, path(key));
}

std::string Fields::character(const std::string& key) {
    std::string value = text(key);
    if (character_starts(value).size() != 2) throw SchemaProblem(path(key), "is not one character");
    return value;
}

const Json* Fields::find_any(const std::string& key) {
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
}

const Json& Fields::dictionary(const std::string& key, size_t most) {
    const Json& value = at(key);
    if (!value.is_object()) throw SchemaProblem(path(key), "is not an object");
    if (value.size() > most) throw SchemaProblem(path(key), "has more than " + std::to_string(most) + " entries");
    for (const auto& [name, item] : value.items()) as_line(Json(name), path(key));
    return value;
}

void Fields::done() const {
    for (const auto& [key, value] : object_.items()) {
        if (!known_.count(key)) throw SchemaProblem(path(key), "is not known to this version");
    }
}

std::string Fields::choice(const std::string& key, const std::vector<std::string>& choices) {
    std::string value = text(key);
    if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
        throw SchemaProblem(path(key), cited(value) + " is not one of " + join(choices, ", ", choices.size()));
    }
    return value;
}

}  // namespace ptp_core
