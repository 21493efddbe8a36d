// What stands behind the handles of ptp.h.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "generation.hpp"

struct ptp_tiles {
    ptp_core::Tiles tiles;
};

struct ptp_visual {
    ptp_core::VisualTokens tokens;
};

struct ptp_session {
    // Verify a bundle and load its graphs; throws Error.
    ptp_session(const std::string& folder, const ptp_options& options);

    void set_error(const std::string& text);
    // Return the calling thread's last error.
    const char* last_error();

    const int64_t max_pixels;  // of the largest image that is decoded
    const std::unique_ptr<ptp_core::Backend> backend;
    const ptp_core::Bundle bundle;
    const std::string backend_name;
    const ptp_core::VisualEncoder encoder;
    const std::unique_ptr<const ptp_core::Decoder> decoder;  // null where only the vision part was asked for
    std::atomic<bool> generating{false};

private:
    std::mutex mutex_;
    std::map<std::thread::id, std::string> errors_;
};
