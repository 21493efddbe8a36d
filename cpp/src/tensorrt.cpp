// TensorRT and TensorRT-RTX: one interface under two names, in the part of it that 10.3 to 11 have in common
// (runtime/backends/tensorrt.py). Not run on hardware yet: the tests run it with a stand-in.
#include "tensorrt.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace ptp_core {
namespace {

// A file's bytes without reading them: an engine may be larger than the memory that is left.
class MappedFile {
public:
    MappedFile(const std::filesystem::path& path, uint64_t size) : size_(size) {
        const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        data_ = file < 0 || !size ? MAP_FAILED : ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
        if (file >= 0) ::close(file);
        if (data_ == MAP_FAILED) throw Error(PTP_ERROR_BACKEND, path.string() + " cannot be read");
    }
    ~MappedFile() { ::munmap(data_, size_); }
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const void* data() const { return data_; }
    size_t size() const { return size_; }

private:
    void* data_;
    size_t size_;
};

std::string library_version() {
    return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
           std::to_string(getInferLibPatchVersion()) + "." + std::to_string(getInferLibBuildVersion());
}

std::shared_ptr<TensorRtLibrary> open_library(const std::string& name) {
    if (name != PTP_TENSORRT_NAME)
        throw Error(PTP_ERROR_BACKEND, "this libptp was built with " PTP_TENSORRT_NAME).got(name);
    // TensorRT must not be asked first: without a driver it returns garbage
    int count = 0;
    cudaDeviceProp device{};
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 1 || cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
        throw Error(PTP_ERROR_BACKEND, "the backend " + name + " needs an NVIDIA GPU")
            .got("no CUDA device")
            .advise("run on a machine where nvidia-smi lists one, or use the backend onnxruntime");
    }
    auto library = std::make_shared<TensorRtLibrary>();
    library->machine = {name, library_version(), device.name, {device.major, device.minor}};
    library->memory = std::make_shared<DeviceMemory>();
    library->runtime.reset(nvinfer1::createInferRuntime(library->log));
    if (!library->runtime) throw Error(PTP_ERROR_BACKEND, name + " cannot be started").got(library->log.text());
    return library;
}

class TensorRtBackend : public Backend {
public:
    TensorRtBackend(const std::string& name, std::string target, std::unique_ptr<Backend> embedding)
        : library_(open_library(name)), target_(std::move(target)), embedding_(std::move(embedding)) {}

    std::unique_ptr<Graph> load(const Bundle& bundle, GraphKind kind) override {
        // a table look-up, which stays on the CPU
        if (kind == GraphKind::embed) return embedding_->load(bundle, kind);
        EngineFile file = find_engine(bundle, kind, library_->machine, target_);
        const MappedFile bytes(file.path, file.config.engine.bytes);
        library_->log.clear();
        std::unique_ptr<nvinfer1::ICudaEngine> engine(
            library_->runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
        if (!engine) {
            const std::string words = library_->log.text();
            throw Error(PTP_ERROR_BACKEND, describe() + " cannot load " + file.path.string())
                .got(words.empty() ? "no engine" : words)
                .advise("build it again: " + file.rebuild);
        }
        return engine_graph(library_, std::move(engine), std::move(file), spec_of(bundle.manifest, kind));
    }

    std::string describe() const override { return library_->machine.backend + " " + library_->machine.version; }

private:
    std::shared_ptr<TensorRtLibrary> library_;
    std::string target_;
    std::unique_ptr<Backend> embedding_;
};

}  // namespace

std::unique_ptr<Backend> tensorrt_backend(const std::string& name, const std::string& target,
                                          std::unique_ptr<Backend> embedding) {
    return std::make_unique<TensorRtBackend>(name, target, std::move(embedding));
}

}  // namespace ptp_core
