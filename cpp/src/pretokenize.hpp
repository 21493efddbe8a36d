// What cuts a text into the words that BPE sees: the normalizers and pre-tokenizers of this subset.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "growth.hpp"
#include "json.hpp"

namespace ptp_core {

// Text on its way to the model; of each byte, which character of the original text it stands for.
struct Traced {
    std::string text;
    std::vector<uint32_t> origin;

    void push(std::string_view characters, uint32_t from) {
        text += characters;
        origin.resize(text.size(), from);
    }
    Traced part(size_t start, size_t end) const;
};

// Replace and Prepend, the normalizers of Llama's and Mistral's older files.
class Normalizer {
public:
    Normalizer() = default;
    // Read `normalizer` of a tokenizer.json; throws SchemaProblem.
    explicit Normalizer(const Json& config);

    Traced operator()(Traced text) const;

    const Growth& growth() const { return growth_; }

private:
    struct Step {
        std::string pattern;  // empty: prepend `content`
        std::string content;
    };

    void read(const Json& config, const std::string& path);

    std::vector<Step> steps_;
    Growth growth_;
};

// ByteLevel, Split with a known pattern, and Metaspace.
class PreTokenizer {
public:
    PreTokenizer() = default;
    // Read `pre_tokenizer` of a tokenizer.json; throws SchemaProblem.
    explicit PreTokenizer(const Json& config);

    std::vector<Traced> operator()(Traced text) const;

    const Growth& growth() const { return growth_; }

private:
    enum class Kind { split, byte_level, metaspace };
    enum class Prepend { always, first, never };

    struct Step {
        Kind kind;
        std::shared_ptr<const void> pattern = nullptr;  // a compiled expression; null: do not split
        Prepend prepend = Prepend::never;
        bool add_space = false;
        bool split = false;
        std::string replacement = "";
    };

    void read(const Json& config, const std::string& path);
    static Step byte_level(Fields& fields);
    static Step known_split(Fields& fields);
    static Step metaspace(Fields& fields);

    std::vector<Step> steps_;
    Growth growth_;
};

// Return the character that stands for a byte in a byte-level vocabulary, and the byte of a character (-1: none).
char32_t character_of_byte(unsigned char byte);
int byte_of_character(char32_t character);

}  // namespace ptp_core
