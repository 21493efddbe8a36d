// A verified bundle on disk.
#pragma once

#include <filesystem>
#include <string>

#include "manifest.hpp"

namespace ptp_core {

struct Bundle {
    std::filesystem::path folder;
    Manifest manifest;

    // Return the path of a file that the manifest lists; throws Error.
    std::filesystem::path path(const std::string& name) const;
};

// Validate a bundle's manifest, then prove that every file is the one that was exported; throws Error.
Bundle open_bundle(const std::filesystem::path& folder);

}  // namespace ptp_core
