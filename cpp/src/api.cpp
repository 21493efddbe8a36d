// The C interface: arguments checked, exceptions turned into codes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "budgets.hpp"
#include "error.hpp"
#include "session.hpp"

namespace {

using ptp_core::Error;

// Run a function; return its outcome as a code and hand the sentence of a failure to `report`.
template <typename Function, typename Report>
ptp_status guarded(Function&& function, Report&& report) noexcept {
    ptp_status status = PTP_ERROR_MEMORY;
    try {
        try {
            function();
            return PTP_OK;
        } catch (const Error& error) {
            status = error.status();
            report(error.what());
        } catch (const std::bad_alloc&) {
            report("out of memory");
        } catch (const std::length_error&) {
            report("out of memory");
        } catch (const std::exception& error) {
            status = PTP_ERROR_BACKEND;
            report(Error(status, "libptp failed").got(error.what()).what());
        } catch (...) {  // of a callback, which should throw nothing
            status = PTP_ERROR_BACKEND;
            report("libptp failed; got an exception without words");
        }
    } catch (...) {
        // no memory for the sentence
    }
    return status;
}

template <typename Function>
ptp_status on_session(ptp_session* session, Function&& function) noexcept {
    if (!session) return PTP_ERROR_CONFIG;
    return guarded(std::forward<Function>(function), [&](const char* text) { session->set_error(text); });
}

void require(const void* pointer, const char* name) {
    if (!pointer) throw Error(PTP_ERROR_CONFIG, std::string(name) + " is NULL");
}

// Refuse a struct that the caller did not initialise, or of a newer version than this library.
template <typename Struct>
void require_size(const Struct* value, const char* name) {
    require(value, name);
    if (value->struct_size == sizeof(Struct)) return;
    throw Error(PTP_ERROR_CONFIG, std::string(name) + " has another size")
        .got(std::to_string(value->struct_size) + " bytes")
        .expected(std::to_string(sizeof(Struct)))
        .advise("set struct_size and compile with the header of this version");
}

// Write a result, `struct_size` included.
template <typename Struct>
void write(Struct* out, Struct value) {
    value.struct_size = sizeof(Struct);
    *out = value;
}

template <typename Handle, typename Make>
ptp_status make_handle(ptp_session* session, Handle** out, const char* name, Make&& make) {
    if (out) *out = nullptr;
    return on_session(session, [&] {
        require(out, name);
        *out = new Handle{make()};
    });
}

ptp_core::GenerateOptions checked(const ptp_generate_options* given) {
    ptp_generate_options options;
    ptp_generate_options_init(&options);
    if (given) {
        require_size(given, "options");
        options = *given;
    }
    if (options.max_new_tokens < 1 || options.max_new_tokens > ptp_core::MAX_DIMENSION)
        throw Error(PTP_ERROR_CONFIG, "max_new_tokens is out of range")
            .got(options.max_new_tokens)
            .expected("1 to " + std::to_string(ptp_core::MAX_DIMENSION));
    if (options.num_stop) require(options.stop, "options.stop");
    ptp_core::GenerateOptions result{options.max_new_tokens, {}};
    for (size_t i = 0; i < options.num_stop; ++i) {
        if (!options.stop[i] || !*options.stop[i])
            throw Error(PTP_ERROR_CONFIG, "stop must be texts that are not empty");
        result.stop.emplace_back(options.stop[i]);
    }
    return result;
}

// One answer at a time.
class Turn {
public:
    explicit Turn(std::atomic<bool>& flag) : flag_(flag) {
        if (flag_.exchange(true))
            throw Error(PTP_ERROR_BUSY, "this session is generating another answer")
                .advise("wait for it or open another session");
    }
    ~Turn() { flag_ = false; }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

private:
    std::atomic<bool>& flag_;
};

double since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

extern "C" {

const char* ptp_version(void) { return PTP_VERSION; }

const char* ptp_status_name(ptp_status status) {
    switch (status) {
        case PTP_OK: return "PTP_OK";
        case PTP_ERROR_CONFIG: return "PTP_ERROR_CONFIG";
        case PTP_ERROR_BUNDLE: return "PTP_ERROR_BUNDLE";
        case PTP_ERROR_IMAGE: return "PTP_ERROR_IMAGE";
        case PTP_ERROR_PROMPT: return "PTP_ERROR_PROMPT";
        case PTP_ERROR_BACKEND: return "PTP_ERROR_BACKEND";
        case PTP_ERROR_MEMORY: return "PTP_ERROR_MEMORY";
        case PTP_ERROR_BUSY: return "PTP_ERROR_BUSY";
    }
    return "unknown";
}

ptp_status ptp_open(const char* folder, const ptp_options* given, ptp_session** session, char* error,
                    size_t error_size) {
    if (session) *session = nullptr;
    const auto report = [&](const char* text) {
        if (!error || !error_size) return;
        size_t length = std::min(std::strlen(text), error_size - 1);
        while (length && (text[length] & 0xC0) == 0x80) --length;  // no part of a character
        std::memcpy(error, text, length);
        error[length] = '\0';
    };
    report("");
    return guarded(
        [&] {
            require(session, "session");
            require(folder, "folder");
            ptp_options options;
            ptp_options_init(&options);
            if (given) {
                require_size(given, "options");
                options = *given;
            }
            *session = new ptp_session(folder, options);
        },
        report);
}

void ptp_close(ptp_session* session) { delete session; }

const char* ptp_last_error(ptp_session* session) { return session ? session->last_error() : "session is NULL"; }

ptp_status ptp_describe(ptp_session* session, ptp_description* description) {
    return on_session(session, [&] {
        require_size(description, "description");
        const ptp_core::Manifest& manifest = session->bundle.manifest;
        const ptp_core::LanguageModel& model = manifest.language_model;
        ptp_description result{};
        result.tile_size = manifest.tiling.tile_size;
        result.max_tiles = manifest.tiling.max_tiles;
        result.tokens_per_tile = manifest.tiling.tokens_per_side * manifest.tiling.tokens_per_side;
        result.num_kept = manifest.pruning.num_kept;
        result.max_prompt = manifest.prompting.max_prompt;
        result.hidden_size = model.hidden_size;
        result.vocab_size = model.vocab_size;
        result.max_positions = model.max_position_embeddings;
        result.needs_question = manifest.takes_question();
        result.model_id = manifest.model_id.c_str();
        result.backend = session->backend_name.c_str();
        write(description, result);
    });
}

ptp_status ptp_tiles_from_file(ptp_session* session, const char* path, ptp_tiles** tiles) {
    return make_handle(session, tiles, "tiles", [&] {
        require(path, "path");
        return ptp_core::make_tiles(ptp_core::load_image(path, session->max_pixels), session->bundle.manifest.tiling);
    });
}

ptp_status ptp_tiles_from_memory(ptp_session* session, const void* data, size_t size, ptp_tiles** tiles) {
    return make_handle(session, tiles, "tiles", [&] {
        require(data, "data");
        const std::string_view bytes(static_cast<const char*>(data), size);
        return ptp_core::make_tiles(ptp_core::decode_image(bytes, "the image", session->max_pixels), session->bundle.manifest.tiling);
    });
}

ptp_status ptp_tiles_from_pixels(ptp_session* session, const ptp_image* image, ptp_tiles** tiles) {
    return make_handle(session, tiles, "tiles", [&] {
        require(image, "image");
        return ptp_core::make_tiles(ptp_core::image_from_pixels(*image, session->max_pixels), session->bundle.manifest.tiling);
    });
}

ptp_status ptp_tiles_get(const ptp_tiles* handle, ptp_tiles_view* view) {
    if (!handle || !view || view->struct_size != sizeof *view) return PTP_ERROR_CONFIG;
    const ptp_core::Tiles& tiles = handle->tiles;
    write(view, {0, tiles.pixel_values.data(), tiles.max_tiles, tiles.tile_size, tiles.height, tiles.width,
                 tiles.grid.first, tiles.grid.second});
    return PTP_OK;
}

void ptp_tiles_free(ptp_tiles* tiles) { delete tiles; }

ptp_status ptp_encode(ptp_session* session, const ptp_tiles* tiles, const char* question,
                      const ptp_encode_options* given, ptp_visual** visual) {
    return make_handle(session, visual, "visual", [&] {
        require(tiles, "tiles");
        ptp_encode_options options;
        ptp_encode_options_init(&options);
        if (given) {
            require_size(given, "options");
            options = *given;
        }
        const ptp_core::Manifest& manifest = session->bundle.manifest;
        const double alpha = ptp_core::alpha_input(options.alpha, manifest.pruning);
        const int64_t num_kept = ptp_core::num_kept_at(options.keep, manifest);
        if (!question || !manifest.takes_question()) {
            if (question) session->encoder.prompter()(question);  // one that cannot be used is refused all the same
            return session->encoder.encode(tiles->tiles, nullptr, alpha, num_kept);
        }
        const ptp_core::Asked asked = session->encoder.ask(question);
        return session->encoder.encode(tiles->tiles, &asked, alpha, num_kept);
    });
}

ptp_status ptp_visual_get(const ptp_visual* handle, ptp_visual_view* view) {
    if (!handle || !view || view->struct_size != sizeof *view) return PTP_ERROR_CONFIG;
    const ptp_core::VisualTokens& tokens = handle->tokens;
    write(view, {0, static_cast<int64_t>(tokens.positions.size()), tokens.features.shape[1], tokens.features.dtype,
                 tokens.features.bytes.data(), tokens.positions.data(), tokens.packed_length,
                 tokens.tile_budgets.data(), static_cast<int64_t>(tokens.tile_budgets.size()), tokens.alpha});
    return PTP_OK;
}

void ptp_visual_free(ptp_visual* visual) { delete visual; }

ptp_status ptp_generate(ptp_session* session, const ptp_visual* visual, const char* question,
                        const ptp_generate_options* given, ptp_token_callback callback, void* user,
                        ptp_answer* answer) {
    return on_session(session, [&] {
        const auto started = std::chrono::steady_clock::now();
        require(visual, "visual");
        require(question, "question");
        if (answer) require_size(answer, "answer");
        const ptp_core::GenerateOptions options = checked(given);
        if (!session->decoder)
            throw Error(PTP_ERROR_CONFIG, "this session has no language model").advise("open it without vision_only");
        const Turn turn(session->generating);
        const ptp_core::Answer made =
            ptp_core::generate(session->encoder, *session->decoder, session->bundle.manifest, visual->tokens, question,
                               options, [&](int64_t token, const std::string& text) {
                                   return !callback || callback(user, token, text.c_str(), text.size()) == 0;
                               });
        if (!answer) return;
        const auto rows = static_cast<int64_t>(visual->tokens.positions.size());
        write(answer, {0, made.num_tokens, rows, made.stop_reason, made.seconds_to_first_token, since(started)});
    });
}

ptp_status ptp_tokenize(ptp_session* session, const char* question, int64_t* ids, size_t capacity, size_t* prefix,
                        size_t* count) {
    return on_session(session, [&] {
        require(question, "question");
        require(ids, "ids");
        require(prefix, "prefix");
        require(count, "count");
        const ptp_core::Prompt prompt = session->encoder.prompter()(question);
        if (prompt.ids.size() > capacity)
            throw Error(PTP_ERROR_CONFIG, "ids has no room for the prompt")
                .got(std::to_string(capacity) + " entries")
                .expected(std::to_string(prompt.ids.size()));
        std::copy(prompt.ids.begin(), prompt.ids.end(), ids);
        *prefix = prompt.prefix;
        *count = prompt.ids.size();
    });
}

}  // extern "C"
