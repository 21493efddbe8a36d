// Answers a question about an image: ask BUNDLE IMAGE QUESTION [--option VALUE]...
//
//   ask demo-output/bundle demo/checkpoint/evaluation/scene-0.jpg "Which digit is on the blue hexagon?"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <string>

#include <ptp.hpp>

namespace {

constexpr const char* USAGE =
    "usage: ask BUNDLE IMAGE QUESTION [options]\n"
    "  --max-new-tokens N      most tokens generated (128)\n"
    "  --alpha A               weight of the question, 0 to 1, or auto\n"
    "  --keep F                fraction of visual tokens kept, where the bundle has a range\n"
    "  --backend NAME          onnxruntime, tensorrt or tensorrt-rtx\n"
    "  --target NAME           folder of engines\n"
    "  --onnxruntime PATH      libonnxruntime.so (or PTP_ONNXRUNTIME)\n"
    "  --threads N             CPU threads\n"
    "  --tokens yes            print token ids instead of text\n"
    "  --times yes             print times on the error output\n";

struct Arguments {
    std::string bundle, image, question;
    std::map<std::string, std::string> options;

    const char* find(const std::string& name) const {
        const auto found = options.find(name);
        return found == options.end() ? nullptr : found->second.c_str();
    }
};

bool parse(int count, char** words, Arguments& arguments) {
    constexpr const char* KNOWN[] = {"max-new-tokens", "alpha",   "keep",   "backend", "target",
                                     "onnxruntime",    "threads", "tokens", "times"};
    if (count < 4 || count % 2) return false;
    arguments = {words[1], words[2], words[3], {}};
    for (int i = 4; i < count; i += 2) {
        bool known = false;
        for (const char* name : KNOWN) known = known || std::string("--") + name == words[i];
        if (!known) return false;
        arguments.options[words[i] + 2] = words[i + 1];
    }
    return true;
}

// Return the bytes of the character at the beginning of UTF-8 text if a terminal would obey it, else 0.
size_t obeyed(std::string_view text) {
    const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
    if ((byte(0) < 0x20 && byte(0) != '\n' && byte(0) != '\t') || byte(0) == 0x7F) return 1;
    if (byte(0) == 0xC2 && byte(1) >= 0x80 && byte(1) < 0xA0) return 2;  // U+0080 to U+009F
    if (byte(0) == 0xD8 && byte(1) == 0x9C) return 2;                    // U+061C; below too, marks of direction
    if (byte(0) != 0xE2) return 0;
    const bool lines = byte(1) == 0x80 && byte(2) >= 0xA8 && byte(2) <= 0xAE;  // U+2028 to U+202E
    const bool marks = byte(1) == 0x80 && (byte(2) == 0x8E || byte(2) == 0x8F);
    const bool isolates = byte(1) == 0x81 && byte(2) >= 0xA6 && byte(2) <= 0xA9;
    return lines || marks || isolates ? 3 : 0;
}

// What a terminal would obey is not passed on: the text is a model's.
void print(std::string_view text) {
    while (!text.empty()) {
        const size_t left_out = obeyed(text);
        if (!left_out) std::cout << text[0];
        text.remove_prefix(left_out ? left_out : 1);
    }
    std::cout << std::flush;
}

double number(const char* option, const char* text) {
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    if (end == text || *end || !(std::fabs(value) < 1e9))
        throw ptp::Failure(PTP_ERROR_CONFIG, std::string("--") + option + " is not a number; got '" + text + "'");
    return value;
}

void answer(const Arguments& arguments) {
    ptp_options options = ptp::default_options();
    options.backend = arguments.find("backend");
    options.target = arguments.find("target");
    options.onnxruntime = arguments.find("onnxruntime");
    if (const char* threads = arguments.find("threads")) options.threads = static_cast<int>(number("threads", threads));
    const ptp::Session session(arguments.bundle, options);

    ptp_encode_options encoding = ptp::default_encode_options();
    if (const char* alpha = arguments.find("alpha"))
        encoding.alpha = std::strcmp(alpha, "auto") ? number("alpha", alpha) : PTP_ALPHA_AUTO;
    encoding.keep = arguments.find("keep");
    const ptp::Visual visual = session.encode(session.tiles(arguments.image), arguments.question.c_str(), encoding);

    ptp_generate_options generation = ptp::default_generate_options();
    if (const char* most = arguments.find("max-new-tokens")) generation.max_new_tokens = static_cast<int64_t>(number("max-new-tokens", most));
    const bool as_tokens = arguments.find("tokens") != nullptr;
    const ptp_answer result = session.generate(
        visual, arguments.question,
        [&](int64_t token, std::string_view text) {
            if (!as_tokens) print(text);
            if (as_tokens && token >= 0) std::cout << token << ' ';
            return true;
        },
        generation);
    std::cout << '\n';
    if (arguments.find("times")) {
        std::fprintf(stderr, "%lld visual tokens, %lld tokens; first after %.1f ms, then %.1f per second\n",
                     static_cast<long long>(result.num_visual_tokens), static_cast<long long>(result.num_tokens),
                     1e3 * result.seconds_to_first_token,
                     static_cast<double>(result.num_tokens - 1) / (result.seconds - result.seconds_to_first_token));
    }
}

}  // namespace

int main(int count, char** words) {
    Arguments arguments;
    if (!parse(count, words, arguments)) {
        std::fputs(USAGE, stderr);
        return 2;
    }
    try {
        answer(arguments);
    } catch (const ptp::Failure& failure) {
        std::cerr << "error: " << failure.what() << '\n';
        return 1;
    }
    return 0;
}
