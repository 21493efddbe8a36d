// SHA-256 of files, remembered by size, times and inode so that a bundle of many gigabytes is read once.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "json.hpp"

namespace ptp_core {

// The file that the Python runtime keeps (`src/ptp/bundle/hashes.py`). It only ever saves work: one that cannot be read
// or written costs a second reading.
class HashCache {
public:
    HashCache();
    ~HashCache();

    // Return the SHA-256 of a file as 64 hexadecimal digits, read only if it changed.
    std::string sha256_of(const std::filesystem::path& path);

private:
    void save() const;

    std::filesystem::path file_;  // empty where there is no place for one
    std::unique_ptr<Json> entries_;
};

std::string sha256_of(const std::filesystem::path& path);

}  // namespace ptp_core
