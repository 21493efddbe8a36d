#include "bundle.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.hpp"
#include "hashes.hpp"
#include "text.hpp"

namespace fs = std::filesystem;

namespace ptp_core {
namespace {

constexpr uint64_t MAX_MANIFEST_BYTES = 1 << 24;
constexpr uint64_t MAX_SMALL_FILE_BYTES = 1 << 26;  // of every file that is read whole: all but graphs and vectors
constexpr uint64_t MAX_VECTORS_BYTES = 1 << 28;
constexpr const char* AGAIN = "export the bundle again";

Manifest read_manifest(const fs::path& folder) {
    const fs::path path = folder / MANIFEST_NAME;
    std::error_code problem;
    if (!fs::exists(path, problem)) {
        throw Error(PTP_ERROR_BUNDLE, folder.string() + " is not a bundle")
            .expected(std::string("a folder with ") + MANIFEST_NAME)
            .advise("make one with ptp-export");
    }
    const std::string text = read_file(path, MAX_MANIFEST_BYTES, PTP_ERROR_BUNDLE);
    if (!is_utf8(text)) throw Error(PTP_ERROR_BUNDLE, path.string() + " is not UTF-8 text").advise(AGAIN);
    return Manifest::from_json(text);
}

// Return whether the listed files have one in a folder.
bool holds_listed(const Manifest& manifest, const std::string& folder) {
    const auto next = manifest.files.lower_bound(folder + "/");
    return next != manifest.files.end() && starts_with(next->first, folder + "/");
}

// A graph may name any file beside it as its weights, so there must be none that was not verified. The manifest bounds
// the walk: it ends at the first file that is not listed and enters no folder that holds none.
void refuse_unlisted_weights(const fs::path& folder, const Manifest& manifest) {
    std::error_code problem, unknown;
    const std::string top(GRAPH_FOLDER, std::strlen(GRAPH_FOLDER) - 1);
    if (fs::is_symlink(folder / top, unknown))
        throw Error(PTP_ERROR_BUNDLE, (folder / top).string() + " is a link").expected("a folder").advise(AGAIN);
    for (fs::recursive_directory_iterator item(folder / top, problem), end; !problem && item != end;
         item.increment(problem)) {
        const bool is_folder = item->is_directory(unknown) && !item->is_symlink(unknown);
        const std::string name = item->path().lexically_relative(folder).generic_string();
        if (!(is_folder ? holds_listed(manifest, name) : manifest.files.count(name) > 0))
            throw Error(PTP_ERROR_BUNDLE, item->path().string() + " is not a file of this bundle").advise("remove it");
    }
    if (problem && fs::exists(folder / top, unknown))
        throw Error(PTP_ERROR_BUNDLE, (folder / top).string() + " cannot be read").got(problem.message()).advise(AGAIN);
}

bool is_inside(const fs::path& path, const fs::path& root) {
    const fs::path relative = path.lexically_relative(root);
    return !relative.empty() && *relative.begin() != "..";
}

void compare_size(const fs::path& path, uint64_t size, const FileEntry& entry, const std::string& advice) {
    if (size == entry.bytes) return;
    throw Error(PTP_ERROR_BUNDLE, path.string() + " was altered")
        .got(std::to_string(size) + " bytes")
        .expected(std::to_string(entry.bytes))
        .advise(advice);
}

void compare_hash(const fs::path& path, const std::string& digest, const FileEntry& entry, const std::string& advice) {
    if (digest == entry.sha256) return;
    throw Error(PTP_ERROR_BUNDLE, path.string() + " was altered")
        .got("SHA-256 " + digest.substr(0, 12) + "…")
        .expected(entry.sha256.substr(0, 12) + "…")
        .advise(advice);
}

// A pipe or a device is refused, and never opened.
void refuse_no_file(const fs::path& path, const std::string& advice) {
    std::error_code problem;
    const fs::file_status status = fs::status(path, problem);
    if (status.type() == fs::file_type::not_found)
        throw Error(PTP_ERROR_BUNDLE, path.string() + " is missing").advise(advice);
    if (status.type() == fs::file_type::none)
        throw Error(PTP_ERROR_BUNDLE, path.string() + " cannot be read").got(problem.message()).advise(advice);
    if (status.type() != fs::file_type::regular)
        throw Error(PTP_ERROR_BUNDLE, path.string() + " is not a file").advise(advice);
    if (::access(path.c_str(), R_OK) != 0)
        throw Error(PTP_ERROR_BUNDLE, path.string() + " cannot be read").got(std::strerror(errno)).advise(advice);
}

}  // namespace

void require_unchanged(const fs::path& path, const FileState& state) {
    if (state_of(path) != state)
        throw Error(PTP_ERROR_BUNDLE, path.string() + " changed after it was verified").advise("start again");
}

FileState verify_file(const fs::path& path, const FileEntry& entry, const fs::path& folder, HashCache& hashes,
                      const std::string& advice) {
    std::error_code problem;
    refuse_no_file(path, advice);
    if (!is_inside(fs::canonical(path, problem), fs::canonical(folder, problem)) || problem) {
        throw Error(PTP_ERROR_BUNDLE, path.string() + " is a link out of the bundle").advise(advice);
    }
    compare_size(path, fs::file_size(path, problem), entry, advice);
    Hashed found = hashes.sha256_of(path);
    compare_hash(path, found.sha256, entry, advice);
    return found.state;
}

fs::path Bundle::path(const std::string& name) const {
    if (!manifest.files.count(name)) {
        throw Error(PTP_ERROR_BUNDLE, "the bundle " + folder.string() + " has no file " + cited(name))
            .advise("export it again");
    }
    return folder / name;
}

std::string Bundle::read(const std::string& name) const {
    const fs::path file = path(name);
    const FileEntry& entry = manifest.files.at(name);
    std::string bytes = read_file(file, MAX_SMALL_FILE_BYTES, PTP_ERROR_BUNDLE);
    compare_size(file, bytes.size(), entry, AGAIN);
    compare_hash(file, sha256_of_bytes(bytes), entry, AGAIN);
    return bytes;
}

void Bundle::require_unchanged() const {
    for (const auto& [path, state] : verified) ptp_core::require_unchanged(path, state);
}

Bundle open_bundle(const fs::path& folder) {
    Bundle bundle{folder, read_manifest(folder), {}};
    refuse_unlisted_weights(folder, bundle.manifest);
    HashCache hashes;
    try {
        for (const auto& [name, entry] : bundle.manifest.files) {
            const fs::path path = folder / name;
            const uint64_t bound = name == bundle.manifest.vectors ? MAX_VECTORS_BYTES : MAX_SMALL_FILE_BYTES;
            const bool is_graph = starts_with(name, GRAPH_FOLDER);
            if (entry.bytes > bound && !is_graph) {
                throw Error(PTP_ERROR_BUNDLE, path.string() + " is too large")
                    .got(std::to_string(entry.bytes) + " bytes")
                    .expected("at most " + std::to_string(bound));
            }
            const FileState state = verify_file(path, entry, folder, hashes, AGAIN);
            if (is_graph) bundle.verified[path.string()] = state;
        }
    } catch (...) {
        hashes.save();  // what was read need not be read again
        throw;
    }
    hashes.save();
    return bundle;
}

}  // namespace ptp_core
