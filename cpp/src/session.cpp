#include "session.hpp"

#include "error.hpp"
#include "image.hpp"
#include "text.hpp"

namespace {

std::unique_ptr<ptp_core::Backend> make_backend(const ptp_options& options) {
    const std::string name = options.backend ? options.backend : "onnxruntime";
    const bool is_onnxruntime = name == "onnxruntime";
    if (!is_onnxruntime && name != "tensorrt" && name != "tensorrt-rtx") {
        throw ptp_core::Error(PTP_ERROR_CONFIG, "no such backend")
            .got(ptp_core::cited(name))
            .expected("onnxruntime or tensorrt or tensorrt-rtx");
    }
    if (is_onnxruntime && options.target)
        throw ptp_core::Error(PTP_ERROR_CONFIG, "target chooses an engine, which onnxruntime has none of")
            .advise("leave it out");
    if (!is_onnxruntime && (options.onnxruntime || options.threads))
        throw ptp_core::Error(PTP_ERROR_CONFIG, "onnxruntime and threads are options of the backend onnxruntime")
            .got("backend " + name)
            .advise("leave them out");
    if (is_onnxruntime)
        return ptp_core::onnxruntime_backend(options.onnxruntime ? options.onnxruntime : "", options.threads);
    return ptp_core::tensorrt_backend(name, options.target ? options.target : "");
}

int64_t checked_pixels(int64_t given) {
    if (given < 0 || given > ptp_core::MAX_PIXELS)
        throw ptp_core::Error(PTP_ERROR_CONFIG, "max_pixels is out of range")
            .got(std::to_string(given))
            .expected("1 to " + std::to_string(ptp_core::MAX_PIXELS) + ", or 0");
    return given ? given : ptp_core::MAX_PIXELS;
}

}  // namespace

ptp_session::ptp_session(const std::string& folder, const ptp_options& options)
    : max_pixels(checked_pixels(options.max_pixels)),
      backend(make_backend(options)),  // before gigabytes are read
      bundle(ptp_core::open_bundle(folder)),
      backend_name(backend->describe()),
      encoder(bundle, *backend, options.vision_only != 0),
      decoder(options.vision_only ? nullptr : std::make_unique<const ptp_core::Decoder>(bundle, *backend, encoder.embedding())) {}

void ptp_session::set_error(const std::string& text) {
    const std::lock_guard lock(mutex_);
    errors_[std::this_thread::get_id()] = text;
}

const char* ptp_session::last_error() {
    const std::lock_guard lock(mutex_);
    const auto found = errors_.find(std::this_thread::get_id());
    return found == errors_.end() ? "" : found->second.c_str();
}
