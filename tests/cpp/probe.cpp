// What the tests of libptp ask: one JSON object a line in, one a line out. Never installed.
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "bundle.hpp"
#include "decode.hpp"
#include "engine_config.hpp"
#include "error.hpp"
#include "prompt.hpp"
#include "ptp.hpp"
#include "tensor.hpp"
#include "tiles.hpp"

namespace {

using ptp_core::Json;

std::string file_text(const std::string& path) { return ptp_core::read_file(path, 1 << 28, PTP_ERROR_BUNDLE); }

void write_file(const std::string& path, const void* data, size_t size) {
    std::ofstream(path, std::ios::binary).write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
}

// Token ids, place of the image and question mask of each question, or its error.
Json tokenize(const Json& order) {
    ptp_core::Prompting prompting;
    prompting.image_token = order["image_token"];
    prompting.image_token_id = order["image_token_id"];
    prompting.max_prompt = order["max_prompt"];
    prompting.add_special_tokens = order["add_special_tokens"];
    const Json& chat = order["chat"];
    prompting.chat = {chat["trim"], chat["before_image"], chat["before_question"], chat["after_question"]};
    const ptp_core::Prompter prompter(prompting,
                                      ptp_core::Tokenizer::from_json(file_text(order["tokenizer"]), "tokenizer.json"));
    Json answers = Json::array();
    for (const std::string question : order["questions"]) {
        try {
            const ptp_core::Prompt prompt = prompter(question);
            answers.push_back({{"ids", prompt.ids}, {"prefix", prompt.prefix}, {"mask", prompt.question_mask}});
        } catch (const ptp_core::Error& error) {
            answers.push_back({{"error", error.what()}});
        }
    }
    return answers;
}

// Ids of whole texts, without a template.
Json encode(const Json& order) {
    const auto tokenizer = ptp_core::Tokenizer::from_json(file_text(order["tokenizer"]), "tokenizer.json");
    Json answers = Json::array();
    for (const std::string text : order["texts"]) {
        Json ids = Json::array(), offsets = Json::array();
        for (const ptp_core::Token& token : tokenizer.encode(text, order["special"])) {
            ids.push_back(token.id);
            offsets.push_back({token.start, token.end});
        }
        answers.push_back({{"ids", ids}, {"offsets", offsets}});
    }
    return answers;
}

// Pieces of text of each list of ids, the rest last.
Json decode(const Json& order) {
    const auto tokenizer = ptp_core::Tokenizer::from_json(file_text(order["tokenizer"]), "tokenizer.json");
    Json answers = Json::array();
    for (const Json& ids : order["ids"]) {
        ptp_core::TextStream stream(tokenizer);
        Json pieces = Json::array();
        for (const int64_t id : ids) pieces.push_back(stream.push(id));
        pieces.push_back(stream.finish());
        answers.push_back(pieces);
    }
    return answers;
}

Json stop(const Json& order) {
    ptp_core::StopText text(order["stop"].get<std::vector<std::string>>());
    Json shown = Json::array();
    for (const std::string piece : order["pieces"]) {
        shown.push_back(text.push(piece));
        if (text.stopped()) return {{"shown", shown}, {"stopped", true}};
    }
    shown.push_back(text.finish());
    return {{"shown", shown}, {"stopped", false}};
}

Json image(const Json& order) {
    const ptp_core::Image decoded = ptp_core::load_image(order["path"].get<std::string>());
    write_file(order["out"], decoded.pixels.data(), decoded.pixels.size());
    return {{"width", decoded.width}, {"height", decoded.height}};
}

Json tiles(const Json& order) {
    const ptp_core::Manifest manifest = ptp_core::Manifest::from_json(file_text(order["manifest"]));
    const ptp_core::Tiles made =
        ptp_core::make_tiles(ptp_core::load_image(order["path"].get<std::string>()), manifest.tiling);
    write_file(order["out"], made.pixel_values.data(), made.pixel_values.size() * sizeof(float));
    return {{"grid", {made.grid.first, made.grid.second}}, {"size", {made.height, made.width}}};
}

Json resize(const Json& order) {
    const ptp_core::Image resized = ptp_core::resize(ptp_core::load_image(order["path"].get<std::string>()),
                                                     order["width"], order["height"], order["filter"]);
    write_file(order["out"], resized.pixels.data(), resized.pixels.size());
    return true;
}

Json manifest(const Json& order) {
    ptp_core::Manifest::from_json(file_text(order["path"]));
    return true;
}

// What is refused of many texts: null for one that is taken. They lie one a line, as JSON texts.
Json judge(const Json& order) {
    const bool is_engine = order["of"] == "engine";
    Json refusals = Json::array();
    for (const Json& text : Json::parse(file_text(order["path"]))) {
        try {
            if (is_engine) {
                ptp_core::parse_engine_config(text.get<std::string>());
            } else {
                ptp_core::Manifest::from_json(text.get<std::string>());
            }
            refusals.push_back(nullptr);
        } catch (const std::exception& error) {
            refusals.push_back(error.what());
        }
    }
    return refusals;
}

// Every float16, to float32 and back; and every float32 of the list to float16.
Json halves(const Json& order) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const bool is_nan = (half & 0x7C00) == 0x7C00 && (half & 0x3FF);
        if (!is_nan && ptp_core::float_to_half(ptp_core::half_to_float(half)) != half) return {{"differs", bits}};
    }
    Json converted = Json::array();
    for (const float value : order["values"]) converted.push_back(ptp_core::float_to_half(value));
    return converted;
}

ptp_options options_of(const Json& order) {
    ptp_options options = ptp::default_options();
    static thread_local std::string backend;
    backend = order.value("backend", "onnxruntime");
    options.backend = backend.c_str();
    if (backend == "onnxruntime") options.threads = 1;
    options.max_pixels = order.value("max_pixels", 0);
    return options;
}

// Opens a bundle through the C interface and asks several questions.
Json ask(const Json& order) {
    const ptp::Session session(order["bundle"], options_of(order));
    Json answers = Json::array();
    for (const Json& item : order["questions"]) {
        const std::string question = item["question"];
        ptp_encode_options encoding = ptp::default_encode_options();
        if (item.contains("alpha")) encoding.alpha = item["alpha"];
        const std::string keep = item.value("keep", "");
        if (!keep.empty()) encoding.keep = keep.c_str();
        ptp_generate_options generation = ptp::default_generate_options();
        generation.max_new_tokens = item.value("max_new_tokens", 16);
        const std::vector<std::string> stop = item.value("stop", std::vector<std::string>{});
        std::vector<const char*> stops;
        for (const std::string& text : stop) stops.push_back(text.c_str());
        generation.stop = stops.data();
        generation.num_stop = stops.size();
        try {
            const ptp::Visual visual =
                session.encode(session.tiles(item["image"].get<std::string>()), question.c_str(), encoding);
            const ptp_visual_view view = visual.view();
            Json ids = Json::array();
            std::string text;
            const ptp_answer answer = session.generate(
                visual, question,
                [&](int64_t token, std::string_view piece) {
                    if (token >= 0) ids.push_back(token);
                    text += piece;
                    return true;
                },
                generation);
            answers.push_back(
                {{"ids", ids},
                 {"text", text},
                 {"stop_reason", answer.stop_reason},
                 {"count", view.count},
                 {"positions", std::vector<int64_t>(view.positions, view.positions + view.count)},
                 {"budgets", std::vector<int32_t>(view.tile_budgets, view.tile_budgets + view.max_tiles)}});
        } catch (const ptp::Failure& failure) {
            answers.push_back({{"error", failure.what()}, {"status", ptp_status_name(failure.status())}});
        }
    }
    return answers;
}

// Misuse of the C interface must give an error, never a crash.
Json misuse(const Json& order) {
    const ptp::Session session(order["bundle"].get<std::string>());
    ptp_session* raw = session.get();
    const ptp::Tiles tiles = session.tiles(order["image"].get<std::string>());
    const ptp::Visual visual = session.encode(tiles, "What?");
    ptp_tiles* made = nullptr;
    ptp_visual* seen = nullptr;
    ptp_description description{};
    uint8_t pixels[12] = {};
    Json codes = Json::object();
    const auto note = [&](const char* name, ptp_status status) {
        codes[name] = {ptp_status_name(status), status == PTP_OK ? "" : ptp_last_error(raw)};
    };
    const auto from_pixels = [&](ptp_image image) { return ptp_tiles_from_pixels(raw, &image, &made); };
    note("description without size", ptp_describe(raw, &description));
    note("no path", ptp_tiles_from_file(raw, nullptr, &made));
    note("no output", ptp_tiles_from_file(raw, "x", nullptr));
    note("no tiles", ptp_encode(raw, nullptr, "What?", nullptr, &seen));
    note("no question", ptp_encode(raw, tiles.get(), nullptr, nullptr, &seen));
    note("bad text", ptp_encode(raw, tiles.get(), "\xff\xfe", nullptr, &seen));
    note("empty memory", ptp_tiles_from_memory(raw, pixels, 0, &made));
    note("few pixels", from_pixels({pixels, sizeof pixels, 3, 2, 0, PTP_RGB}));
    note("short stride", from_pixels({pixels, sizeof pixels, 2, 2, 5, PTP_RGB}));
    note("huge stride", from_pixels({pixels, sizeof pixels, 2, 2, SIZE_MAX, PTP_RGB}));
    note("huge image", from_pixels({pixels, sizeof pixels, INT32_MAX, INT32_MAX, 0, PTP_RGB}));
    note("negative image", from_pixels({pixels, sizeof pixels, -2, 2, 0, PTP_RGB}));
    note("bad format", from_pixels({pixels, sizeof pixels, 2, 2, 0, static_cast<ptp_pixel_format>(3)}));
    ptp_status inside = PTP_OK;
    session.generate(visual, "What?", [&](int64_t, std::string_view) {
        inside = ptp_generate(raw, visual.get(), "What?", nullptr, nullptr, nullptr, nullptr);
        return false;
    });
    note("in a callback", inside);
    codes["no session"] = {ptp_status_name(ptp_describe(nullptr, &description)), ""};
    const bool fine = from_pixels({pixels, sizeof pixels, 2, 2, 0, PTP_RGB}) == PTP_OK;
    ptp_tiles_free(made);
    codes["fine"] = fine;
    return codes;
}

// Encodes and tokenises on several threads while one generates: all get what one alone gets.
Json threads(const Json& order) {
    const ptp::Session session(order["bundle"].get<std::string>());
    const std::string image = order["image"], question = order["question"];
    const std::vector<std::string> questions = {question, "How many are there?", question, "Which letter is it?"};
    const auto kept = [&](const std::string& asked) {
        const ptp::Visual visual = session.encode(session.tiles(image), asked.c_str());
        const ptp_visual_view view = visual.view();
        return Json{{"positions", std::vector<int64_t>(view.positions, view.positions + view.count)},
                    {"ids", session.tokenize(asked).ids}};
    };
    const auto answer = [&] {
        Json ids = Json::array();
        const ptp::Visual visual = session.encode(session.tiles(image), question.c_str());
        session.generate(visual, question, [&](int64_t token, std::string_view) {
            ids.push_back(token);
            return true;
        });
        return ids;
    };
    Json alone = Json::array(), together = Json::array();
    for (const std::string& asked : questions) alone.push_back(kept(asked));
    alone.push_back(answer());
    std::vector<Json> found(questions.size());
    std::vector<std::thread> workers;
    for (size_t i = 0; i < found.size(); ++i) workers.emplace_back([&, i] { found[i] = kept(questions[i]); });
    const Json own = answer();
    for (std::thread& worker : workers) worker.join();
    for (const Json& one : found) together.push_back(one);
    together.push_back(own);
    return {{"alone", alone}, {"together", together}};
}

Json run(const Json& order) {
    const std::string what = order["do"];
    if (what == "tokenize") return tokenize(order);
    if (what == "encode") return encode(order);
    if (what == "decode") return decode(order);
    if (what == "stop") return stop(order);
    if (what == "image") return image(order);
    if (what == "tiles") return tiles(order);
    if (what == "resize") return resize(order);
    if (what == "manifest") return manifest(order);
    if (what == "judge") return judge(order);
    if (what == "halves") return halves(order);
    if (what == "ask") return ask(order);
    if (what == "misuse") return misuse(order);
    if (what == "threads") return threads(order);
    throw std::runtime_error("no such order: " + what);
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        Json answer;
        try {
            answer = {{"result", run(Json::parse(line))}};
        } catch (const ptp_core::Error& error) {
            answer = {{"error", error.what()}, {"status", ptp_status_name(error.status())}};
        } catch (const ptp::Failure& failure) {
            answer = {{"error", failure.what()}, {"status", ptp_status_name(failure.status())}};
        }
        std::cout << answer.dump(-1, ' ', true, Json::error_handler_t::replace) << std::endl;
    }
    return 0;
}
