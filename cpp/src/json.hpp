// JSON from strangers: bounded in depth, read field by field, every key accounted for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>  // the whole takes seconds to compile: for the files that look into values
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptp_core {

using Json = nlohmann::json;

// A value that does not follow its schema: "pruning.keep: is missing".
struct SchemaProblem : std::runtime_error {
    SchemaProblem(const std::string& path, const std::string& problem);
};

// Return a file's bytes.
//
// Throws Error with `status` where it is missing, no file, or larger than `limit`.
std::string read_file(const std::filesystem::path& path, uint64_t limit, int status);

// Parse JSON of at most MAX_DEPTH levels; throws std::runtime_error.
Json parse_json(std::string_view text);

// The same, and refuse a key that an object has twice.
Json parse_strict_json(std::string_view text);

constexpr int64_t MAX_DIMENSION = 1 << 20;
constexpr double LARGEST_MEASURE = 1e9;

int64_t as_integer(const Json& value, const std::string& path, int64_t low, int64_t high);
double as_number(const Json& value, const std::string& path, double low = -LARGEST_MEASURE,
                 double high = LARGEST_MEASURE);
bool as_bool(const Json& value, const std::string& path);
std::string as_text(const Json& value, const std::string& path);
// At most 1000 characters.
std::string as_short_text(const Json& value, const std::string& path);
// Text that is shown to a person: no control characters, at most 1000 of others.
std::string as_line(const Json& value, const std::string& path);
// Path of a file inside the bundle, with one spelling for one file.
std::string as_relative_path(const Json& value, const std::string& path);
const Json& as_list(const Json& value, const std::string& path, size_t most);

// The fields of an object. `done` refuses those that nobody asked for.
class Fields {
public:
    Fields(const Json& object, std::string path);

    const Json& at(const std::string& key);
    // Return nullptr where the field is missing or null.
    const Json* find(const std::string& key);
    // A field that may be missing; null is no value of it.
    bool flag(const std::string& key, bool missing);
    // A text of one character.
    std::string character(const std::string& key);
    // A field that is known and not looked at.
    void skip(const std::string& key) { known_.insert(key); }
    // Return nullptr where the field is missing.
    const Json* find_any(const std::string& key);
    void done() const;

    std::string path(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
    int64_t integer(const std::string& key, int64_t low, int64_t high) {
        return as_integer(at(key), path(key), low, high);
    }
    double number(const std::string& key, double low = -LARGEST_MEASURE, double high = LARGEST_MEASURE) {
        return as_number(at(key), path(key), low, high);
    }
    std::string text(const std::string& key) { return as_text(at(key), path(key)); }
    std::string line(const std::string& key) { return as_line(at(key), path(key)); }
    std::string relative_path(const std::string& key) { return as_relative_path(at(key), path(key)); }
    Fields object(const std::string& key) { return Fields(at(key), path(key)); }
    // An object with keys of the writer's choice: lines, at most `most`.
    const Json& dictionary(const std::string& key, size_t most);
    std::string choice(const std::string& key, const std::vector<std::string>& choices);

private:
    const Json& object_;
    std::string path_;
    std::set<std::string> known_;
};

}  // namespace ptp_core
