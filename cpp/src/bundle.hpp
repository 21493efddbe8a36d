// A verified bundle on disk.
#pragma once

#include <filesystem>
#include <string>

#include "hashes.hpp"
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

// Refuse a file that is not what was written, or leads out of `folder`; throws Error with `advice`.
void verify_file(const std::filesystem::path& path, const FileEntry& entry, const std::filesystem::path& folder,
                 HashCache& hashes, const std::string& advice);

}  // namespace ptp_core
