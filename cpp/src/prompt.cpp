#include "prompt.hpp"

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr size_t MAX_QUESTION_BYTES = 1 << 20;

void check_question(std::string_view question, const std::string& image_token) {
    if (question.size() > MAX_QUESTION_BYTES) {
        throw Error(PTP_ERROR_PROMPT, "the question is too long")
            .got(std::to_string(question.size()) + " bytes")
            .expected("at most " + std::to_string(MAX_QUESTION_BYTES));
    }
    if (!is_utf8(question))
        throw Error(PTP_ERROR_PROMPT, "the question is not valid Unicode text").got(cited(question));
    if (is_blank(question)) throw Error(PTP_ERROR_PROMPT, "the question is empty");
    if (question.find(image_token) != std::string_view::npos) {
        throw Error(PTP_ERROR_PROMPT, "the question contains the image token " + image_token).advise("leave it out");
    }
}

// Return the question without the white space that the chat template removes from it.
std::string_view trimmed(std::string_view question, const std::string& trim) {
    if (trim == "none") return question;
    size_t start = question.size(), end = 0;
    for (size_t i = 0; i < question.size();) {
        const size_t at = i;
        if (is_stripped(next_character(question, i))) continue;
        start = std::min(start, at);
        end = i;
    }
    return trim == "both" ? question.substr(start, end - start) : question.substr(0, end);
}

}  // namespace

Prompt Prompter::operator()(std::string_view question) const {
    check_question(question, prompting_.image_token);
    const ChatFormat& chat = prompting_.chat;
    question = trimmed(question, chat.trim);
    const std::string head = chat.before_image + prompting_.image_token + chat.before_question;
    const std::string text = head + std::string(question) + chat.after_question;
    const size_t first = character_starts(head).size() - 1, last = first + character_starts(question).size() - 1;

    Prompt prompt{{}, 0, {}};
    size_t images = 0;
    for (const Token& token : tokenizer_.encode(text, prompting_.add_special_tokens)) {
        if (token.id == prompting_.image_token_id) {
            ++images;
            prompt.prefix = prompt.ids.size();
            continue;
        }
        prompt.ids.push_back(token.id);
        const size_t end = std::max(token.end, token.start + 1);
        prompt.question_mask.push_back(token.from_text && token.start < last && end > first);
    }
    if (images != 1) {
        throw Error(PTP_ERROR_PROMPT, "the prompt must hold one image token")
            .got(static_cast<long long>(images))
            .advise("export the bundle again");
    }
    if (prompt.ids.empty()) throw Error(PTP_ERROR_PROMPT, "the question is empty").got("no token");
    const auto longest = static_cast<size_t>(prompting_.max_prompt);
    if (prompt.ids.size() > longest) {
        throw Error(PTP_ERROR_PROMPT, "the prompt is too long for this bundle")
            .got(std::to_string(prompt.ids.size()) + " text tokens")
            .expected("at most " + std::to_string(longest))
            .advise("shorten the question or export with a larger --max-prompt");
    }
    return prompt;
}

}  // namespace ptp_core
