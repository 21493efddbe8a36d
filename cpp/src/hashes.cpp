#include "hashes.hpp"

#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "error.hpp"

namespace ptp_core {
namespace {

constexpr size_t CHUNK = 1 << 20;
constexpr uint64_t MAX_CACHE_BYTES = 1 << 24;

int64_t nanoseconds(const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

std::filesystem::path cache_file() {
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    std::filesystem::path folder;
    if (cache && *cache) {
        folder = cache;
    } else if (home && *home) {
        folder = std::filesystem::path(home) / ".cache";
    } else {
        return {};
    }
    return folder / "ptp-export" / "sha256.json";
}

}  // namespace

std::string sha256_of(const std::filesystem::path& path) {
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    std::ifstream file(path, std::ios::binary);
    bool fine = context && file && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
    std::vector<char> chunk(CHUNK);
    while (fine && file) {
        file.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
        fine = EVP_DigestUpdate(context.get(), chunk.data(), static_cast<size_t>(file.gcount())) == 1;
    }
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    if (!fine || !file.eof() || EVP_DigestFinal_ex(context.get(), digest, &length) != 1) {
        throw Error(PTP_ERROR_BUNDLE, path.string() + " cannot be read");
    }
    std::string text;
    for (unsigned int i = 0; i < length; ++i) {
        text += "0123456789abcdef"[digest[i] >> 4];
        text += "0123456789abcdef"[digest[i] & 15];
    }
    return text;
}

HashCache::HashCache() : file_(cache_file()), entries_(std::make_unique<Json>(Json::object())) {
    if (file_.empty()) return;
    try {
        Json entries = parse_json(read_file(file_, MAX_CACHE_BYTES, PTP_ERROR_BUNDLE));
        if (entries.is_object()) *entries_ = std::move(entries);
    } catch (const std::exception&) {
        // none yet, or one that was spoiled
    }
}

HashCache::~HashCache() = default;

std::string HashCache::sha256_of(const std::filesystem::path& path) {
    struct stat stat{};
    std::error_code problem;
    const std::string key = std::filesystem::canonical(path, problem).string();
    if (problem || ::stat(path.c_str(), &stat) != 0) throw Error(PTP_ERROR_BUNDLE, path.string() + " cannot be read");
    Json state = {stat.st_size, nanoseconds(stat.st_mtim), nanoseconds(stat.st_ctim), stat.st_ino};
    const auto known = entries_->find(key);
    if (known != entries_->end() && known->is_array() && known->size() == 5 && known->back().is_string()) {
        Json compared = *known;
        compared.erase(4);
        if (compared == state) return known->back().get<std::string>();
    }
    std::string digest = ptp_core::sha256_of(path);
    state.push_back(digest);
    (*entries_)[key] = std::move(state);
    save();
    return digest;
}

void HashCache::save() const {
    if (file_.empty()) return;
    std::error_code problem;
    std::filesystem::create_directories(file_.parent_path(), problem);
    std::string name = (file_.parent_path() / "sha256.XXXXXX").string();
    const int handle = mkstemp(name.data());
    if (handle < 0) return;
    // a path need not be UTF-8
    const std::string text = entries_->dump(-1, ' ', false, Json::error_handler_t::replace);
    const bool written = ::write(handle, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::close(handle);
    if (written) std::filesystem::rename(name, file_, problem);
    if (!written || problem) std::filesystem::remove(name, problem);
}

}  // namespace ptp_core
