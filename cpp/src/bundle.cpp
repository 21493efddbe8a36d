#include "bundle.hpp"

#include "error.hpp"
#include "hashes.hpp"
#include "text.hpp"

namespace fs = std::filesystem;

namespace ptp_core {
namespace {

constexpr uint64_t MAX_MANIFEST_BYTES = 1 << 24;
constexpr const char* AGAIN = "export the bundle again";

Manifest read_manifest(const fs::path& folder) {
    const fs::path path = folder / MANIFEST_NAME;
    std::error_code problem;
    if (!fs::is_regular_file(path, problem)) {
        throw Error(PTP_ERROR_BUNDLE, folder.string() + " is not a bundle")
            .expected(std::string("a folder with ") + MANIFEST_NAME)
            .advise("make one with ptp-export");
    }
    const std::string text = read_file(path, MAX_MANIFEST_BYTES, PTP_ERROR_BUNDLE);
    if (!is_utf8(text)) throw Error(PTP_ERROR_BUNDLE, path.string() + " is not UTF-8 text").advise(AGAIN);
    return Manifest::from_json(text);
}

// A graph may name any file beside it as its weights, so there must be none that was not verified.
void refuse_unlisted_weights(const fs::path& folder, const Manifest& manifest) {
    std::error_code problem, unknown;
    for (fs::recursive_directory_iterator item(folder / GRAPH_FOLDER, problem), end; !problem && item != end;
         item.increment(problem)) {
        const bool is_folder = item->is_directory(unknown) && !item->is_symlink(unknown);
        if (!is_folder && !manifest.files.count(item->path().lexically_relative(folder).generic_string())) {
            throw Error(PTP_ERROR_BUNDLE, item->path().string() + " is not a file of this bundle").advise("remove it");
        }
    }
    if (problem && fs::exists(folder / GRAPH_FOLDER, unknown))
        throw Error(PTP_ERROR_BUNDLE, (folder / GRAPH_FOLDER).string() + " cannot be read").got(problem.message());
}

bool is_inside(const fs::path& path, const fs::path& root) {
    const fs::path relative = path.lexically_relative(root);
    return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

void verify_file(const fs::path& path, const FileEntry& entry, const fs::path& folder, HashCache& hashes,
                 const std::string& advice) {
    std::error_code problem;
    if (!fs::is_regular_file(path, problem))
        throw Error(PTP_ERROR_BUNDLE, path.string() + " is missing").advise(advice);
    if (!is_inside(fs::canonical(path, problem), fs::canonical(folder, problem)) || problem) {
        throw Error(PTP_ERROR_BUNDLE, path.string() + " is a link out of the bundle").advise(advice);
    }
    const uint64_t size = fs::file_size(path, problem);
    const std::string altered = path.string() + " was altered";
    if (problem || size != entry.bytes) {
        throw Error(PTP_ERROR_BUNDLE, altered)
            .got(std::to_string(size) + " bytes")
            .expected(std::to_string(entry.bytes))
            .advise(advice);
    }
    const std::string digest = hashes.sha256_of(path);
    if (digest != entry.sha256) {
        throw Error(PTP_ERROR_BUNDLE, altered)
            .got("SHA-256 " + digest.substr(0, 12) + "…")
            .expected(entry.sha256.substr(0, 12) + "…")
            .advise(advice);
    }
}

fs::path Bundle::path(const std::string& name) const {
    if (!manifest.files.count(name)) {
        throw Error(PTP_ERROR_BUNDLE, "the bundle " + folder.string() + " has no file " + cited(name))
            .advise("export it again");
    }
    return folder / name;
}

Bundle open_bundle(const fs::path& folder) {
    Bundle bundle{folder, read_manifest(folder)};
    refuse_unlisted_weights(folder, bundle.manifest);
    HashCache hashes;
    for (const auto& [name, entry] : bundle.manifest.files) verify_file(folder / name, entry, folder, hashes, AGAIN);
    return bundle;
}

}  // namespace ptp_core
