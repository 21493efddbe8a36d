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

// What a terminal would obey is not passed on: the text is a model's.
void print(std::string_view text) {
    for (size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if (byte == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0) {
            ++i;  // U+0080 to U+009F
        } else if ((byte >= 0x20 && byte != 0x7F) || byte == '\n' || byte == '\t') {
            std::cout << text[i];
        }
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
