/**
 * @file ptp.hpp
 * @brief C++ wrapper of ptp.h: handles that free themselves, errors as exceptions. Header only.
 */
#ifndef PTP_HPP
#define PTP_HPP

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ptp.h"

namespace ptp {

/** A call that failed; what() is the library's sentence. */
class Failure : public std::runtime_error {
public:
    /** @param status its code. @param text the library's sentence. */
    Failure(ptp_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
    /** Its code. */
    ptp_status status() const noexcept { return status_; }

private:
    ptp_status status_;
};

/** Tiles of one image. */
class Tiles {
public:
    /** Takes the handle over. */
    explicit Tiles(ptp_tiles* handle) : handle_(handle, ptp_tiles_free) {}
    /** The handle, which stays this object's. */
    const ptp_tiles* get() const { return handle_.get(); }
    /** Where the values are. */
    ptp_tiles_view view() const {
        ptp_tiles_view view{};
        view.struct_size = sizeof view;
        ptp_tiles_get(get(), &view);
        return view;
    }

private:
    std::unique_ptr<ptp_tiles, void (*)(ptp_tiles*)> handle_;
};

/** Visual tokens of one image. */
class Visual {
public:
    /** Takes the handle over. */
    explicit Visual(ptp_visual* handle) : handle_(handle, ptp_visual_free) {}
    /** The handle, which stays this object's. */
    const ptp_visual* get() const { return handle_.get(); }
    /** Where the values are. */
    ptp_visual_view view() const {
        ptp_visual_view view{};
        view.struct_size = sizeof view;
        ptp_visual_get(get(), &view);
        return view;
    }

private:
    std::unique_ptr<ptp_visual, void (*)(ptp_visual*)> handle_;
};

/** Options of a session with their defaults. */
inline ptp_options default_options() {
    ptp_options options;
    ptp_options_init(&options);
    return options;
}

/** Options of ptp_encode with their defaults. */
inline ptp_encode_options default_encode_options() {
    ptp_encode_options options;
    ptp_encode_options_init(&options);
    return options;
}

/** Options of ptp_generate with their defaults. */
inline ptp_generate_options default_generate_options() {
    ptp_generate_options options;
    ptp_generate_options_init(&options);
    return options;
}

/** A loaded bundle. Every function throws Failure. */
class Session {
public:
    /** Called for each token and the text that it completes (token -1: text that was held back); false ends the answer.
     */
    using OnToken = std::function<bool(int64_t token, std::string_view text)>;

    /** See ptp_open(). */
    explicit Session(const std::string& folder, const ptp_options& options = default_options())
        : handle_(nullptr, ptp_close) {
        ptp_session* session = nullptr;
        char error[1024];
        const ptp_status status = ptp_open(folder.c_str(), &options, &session, error, sizeof error);
        if (status != PTP_OK) throw Failure(status, error);
        handle_.reset(session);
    }

    /** The handle, which stays this object's. */
    ptp_session* get() const { return handle_.get(); }

    /** Sizes of the bundle. */
    ptp_description describe() const {
        ptp_description description{};
        description.struct_size = sizeof description;
        check(ptp_describe(get(), &description));
        return description;
    }

    /** Tiles of a JPEG or PNG file. */
    Tiles tiles(const std::string& path) const {
        ptp_tiles* tiles = nullptr;
        check(ptp_tiles_from_file(get(), path.c_str(), &tiles));
        return Tiles(tiles);
    }

    /** Tiles of a JPEG or PNG file of `size` bytes in memory. */
    Tiles tiles(const void* data, size_t size) const {
        ptp_tiles* tiles = nullptr;
        check(ptp_tiles_from_memory(get(), data, size, &tiles));
        return Tiles(tiles);
    }

    /** Tiles of upright pixels. */
    Tiles tiles(const ptp_image& image) const {
        ptp_tiles* tiles = nullptr;
        check(ptp_tiles_from_pixels(get(), &image, &tiles));
        return Tiles(tiles);
    }

    /** See ptp_encode(); `question` may be NULL where the bundle does not look at it. */
    Visual encode(const Tiles& tiles, const char* question,
                  const ptp_encode_options& options = default_encode_options()) const {
        ptp_visual* visual = nullptr;
        check(ptp_encode(get(), tiles.get(), question, &options, &visual));
        return Visual(visual);
    }

    /** Token ids of a prompt; the image stands behind the first `prefix` of them. */
    struct Prompt {
        std::vector<int64_t> ids; /**< text before the image, then text after it */
        size_t prefix;            /**< how many of them stand before it */
    };

    /** See ptp_tokenize(). */
    Prompt tokenize(const std::string& question) const {
        Prompt prompt{std::vector<int64_t>(static_cast<size_t>(describe().max_prompt)), 0};
        size_t count = 0;
        check(ptp_tokenize(get(), question.c_str(), prompt.ids.data(), prompt.ids.size(), &prompt.prefix, &count));
        prompt.ids.resize(count);
        return prompt;
    }

    /** See ptp_generate(). An exception of `on_token` ends the answer and is passed on. */
    ptp_answer generate(const Visual& visual, const std::string& question, const OnToken& on_token,
                        const ptp_generate_options& options = default_generate_options()) const {
        if (question.find('\0') != std::string::npos)
            throw Failure(PTP_ERROR_PROMPT, "the question holds a NUL character, at which C text ends");
        Call call{on_token, nullptr};
        ptp_answer answer{};
        answer.struct_size = sizeof answer;
        const ptp_status status =
            ptp_generate(get(), visual.get(), question.c_str(), &options, on_token ? forward : nullptr, &call, &answer);
        if (call.thrown) std::rethrow_exception(call.thrown);
        check(status);
        return answer;
    }

private:
    struct Call {
        const OnToken& on_token;
        std::exception_ptr thrown;
    };

    static int forward(void* user, int64_t token, const char* text, size_t size) noexcept {
        auto* call = static_cast<Call*>(user);
        try {
            return call->on_token(token, std::string_view(text, size)) ? 0 : 1;
        } catch (...) {
            call->thrown = std::current_exception();
            return 1;
        }
    }

    void check(ptp_status status) const {
        if (status != PTP_OK) throw Failure(status, ptp_last_error(get()));
    }

    std::unique_ptr<ptp_session, void (*)(ptp_session*)> handle_;
};

}  // namespace ptp

#endif
