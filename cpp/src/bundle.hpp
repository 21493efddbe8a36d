// A verified bundle on disk.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "hashes.hpp"
#include "manifest.hpp"

namespace ptp_core {

struct Bundle {
    std::filesystem::path folder;
    Manifest manifest;
    std::map<std::string, FileState> verified;  // of graphs and weights, by path

    // Return the path of a file that the manifest lists; throws Error.
    std::filesystem::path path(const std::string& name) const;

    // Return the bytes of a small file, which are those that the manifest lists; throws Error.
    std::string read(const std::string& name) const;

    // Refuse graphs and weights that changed since they were verified, to be called after a library read them by path;
    // throws Error. What it read is then what was verified, but for a write into a file that it maps while it runs.
    void require_unchanged() const;
};

// Validate a bundle's manifest, then prove that every file is the one that was exported; throws Error.
Bundle open_bundle(const std::filesystem::path& folder);

// Refuse a file that changed since it was verified; throws Error.
void require_unchanged(const std::filesystem::path& path, const FileState& state);

// Refuse a file that is not what was written, or leads out of `folder`, and return its state; throws Error with
// `advice`.
FileState verify_file(const std::filesystem::path& path, const FileEntry& entry, const std::filesystem::path& folder,
                 HashCache& hashes, const std::string& advice);

}  // namespace ptp_core
