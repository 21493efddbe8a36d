#include "hashes.hpp"

#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "error.hpp"
#include "text.hpp"

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

FileState state_from(const struct stat& found) {
    return {found.st_size, nanoseconds(found.st_mtim), nanoseconds(found.st_ctim),
            static_cast<int64_t>(found.st_ino)};
}

class Digest {
public:
    Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
        fine_ = context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1;
    }

    void update(const char* data, size_t size) { fine_ = fine_ && EVP_DigestUpdate(context_.get(), data, size) == 1; }

    std::string text() {
        unsigned char digest[EVP_MAX_MD_SIZE];
        unsigned int length = 0;
        if (!fine_ || EVP_DigestFinal_ex(context_.get(), digest, &length) != 1)
            throw Error(PTP_ERROR_BUNDLE, "SHA-256 cannot be computed");
        std::string text;
        for (unsigned int i = 0; i < length; ++i) {
            text += "0123456789abcdef"[digest[i] >> 4];
            text += "0123456789abcdef"[digest[i] & 15];
        }
        return text;
    }

private:
    std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
    bool fine_ = false;
};

}  // namespace

FileState state_of(const std::filesystem::path& path) {
    struct stat found{};
    return ::stat(path.c_str(), &found) == 0 ? state_from(found) : FileState{};
}

std::string sha256_of_bytes(std::string_view bytes) {
    Digest digest;
    digest.update(bytes.data(), bytes.size());
    return digest.text();
}

std::string sha256_of(const std::filesystem::path& path) {
    Digest digest;
    std::ifstream file(path, std::ios::binary);
    bool fine = !!file;
    std::vector<char> chunk(CHUNK);
    while (file) {
        file.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
        digest.update(chunk.data(), static_cast<size_t>(file.gcount()));
    }
    fine = fine && file.eof() && !file.bad();
    if (!fine) throw Error(PTP_ERROR_BUNDLE, path.string() + " cannot be read").got(std::strerror(errno));
    return digest.text();
}

HashCache::HashCache()
    : file_(cache_file()), entries_(std::make_unique<Json>(read())), new_(std::make_unique<Json>(Json::object())) {}

HashCache::~HashCache() = default;

Json HashCache::read() const {
    if (file_.empty()) return Json::object();
    try {
        Json entries = parse_json(read_file(file_, MAX_CACHE_BYTES, PTP_ERROR_BUNDLE));
        if (entries.is_object()) return entries;
    } catch (const std::exception&) {
        // none yet, or one that was spoiled
    }
    return Json::object();
}

Hashed HashCache::sha256_of(const std::filesystem::path& path) {
    std::error_code problem;
    const FileState state = state_of(path);
    const std::string key = std::filesystem::canonical(path, problem).string();
    if (problem) throw Error(PTP_ERROR_BUNDLE, path.string() + " cannot be read").got(problem.message());
    const auto known = entries_->find(key);
    if (known != entries_->end() && known->is_array() && known->size() == 5 && known->back().is_string()) {
        if (std::equal(state.begin(), state.end(), known->begin(), [](int64_t a, const Json& b) { return b == a; }))
            return {known->back().get<std::string>(), state};
    }
    std::string digest = ptp_core::sha256_of(path);
    if (state_of(path) != state)
        throw Error(PTP_ERROR_BUNDLE, path.string() + " changed while it was read").advise("try again");
    if (is_utf8(key)) {  // JSON holds no other names
        (*new_)[key] = state;
        (*new_)[key].push_back(digest);
    }
    return {std::move(digest), state};
}

void HashCache::save() {
    if (file_.empty() || new_->empty()) return;
    Json all = read();
    all.update(*new_);
    std::string text = all.dump();
    if (text.size() > MAX_CACHE_BYTES) text = new_->dump();  // begin anew: most of it is of bundles that are gone
    *new_ = Json::object();
    std::error_code problem;
    std::filesystem::create_directories(file_.parent_path(), problem);
    std::string name = (file_.parent_path() / "sha256.XXXXXX").string();
    const int handle = mkstemp(name.data());
    if (handle < 0) return;
    const bool written = ::write(handle, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::close(handle);
    if (written) std::filesystem::rename(name, file_, problem);
    if (!written || problem) std::filesystem::remove(name, problem);
}

}  // namespace ptp_core
