// SHA-256 of files, remembered by size, times and inode so that a bundle of many gigabytes is read once.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "json.hpp"

namespace ptp_core {

// Size, modification and change time in ns, inode. No program can set the change time.
using FileState = std::array<int64_t, 4>;

// Return the state of a file; zeros where there is none that can be looked at.
FileState state_of(const std::filesystem::path& path);

struct Hashed {
    std::string sha256;
    FileState state;  // that the file was read in
};

// The file that the Python runtime keeps (`src/ptp/bundle/hashes.py`). It only ever saves work: one that cannot be read
// or written costs a second reading.
class HashCache {
public:
    HashCache();
    ~HashCache();

    // Return the SHA-256 of a file as 64 hexadecimal digits, read only if it changed; throws Error.
    Hashed sha256_of(const std::filesystem::path& path);

    // Write what was read since the cache was opened, beside what others have written; once for many files.
    void save();

private:
    Json read() const;

    std::filesystem::path file_;  // empty where there is no place for one
    std::unique_ptr<Json> entries_, new_;
};

std::string sha256_of(const std::filesystem::path& path);
std::string sha256_of_bytes(std::string_view bytes);

}  // namespace ptp_core
