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
    int count = 0, current = 0;
    cudaDeviceProp device{};
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 1 || cudaGetDevice(&current) != cudaSuccess ||
        cudaGetDeviceProperties(&device, current) != cudaSuccess) {
        throw Error(PTP_ERROR_BACKEND, "the backend " + name + " needs an NVIDIA GPU")
            .got("no CUDA device")
            .advise("run on a machine where nvidia-smi lists one, or use the backend onnxruntime");
    }
    auto library = std::make_shared<TensorRtLibrary>();
    library->machine = {name, library_version(), device.name, {device.major, device.minor}};
    library->memory = std::make_shared<DeviceMemory>(current);
    library->runtime.reset(nvinfer1::createInferRuntime(library->log));
    if (!library->runtime) throw Error(PTP_ERROR_BACKEND, name + " cannot be started").got(library->log.text());
    return library;
}

class TensorRtBackend : public Backend {
public:
    TensorRtBackend(const std::string& name, std::string target)
        : library_(open_library(name)), target_(std::move(target)) {}

    std::unique_ptr<Graph> load(const Bundle& bundle, GraphKind kind) override {
        const DeviceMemory::Use use = library_->memory->use();
        EngineFile file = find_engine(bundle, kind, library_->machine, target_);
        const MappedFile bytes(file.path, file.config.engine.bytes);
        library_->log.clear();
        if (file.config.flags.count("VERSION_COMPATIBLE"))  // such an engine carries code of its own release along
            library_->runtime->setEngineHostCodeAllowed(true);
        std::unique_ptr<nvinfer1::ICudaEngine> engine(
            library_->runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
        require_unchanged(file.path, file.state);
        if (!engine) {
            const std::string words = library_->log.text();
            throw Error(PTP_ERROR_BACKEND, describe() + " cannot load " + file.path.string())
                .got(words.empty() ? "no engine" : words)
                .advise("build it again: " + file.rebuild);
        }
        if (engine->getStreamableWeightsSize() > 0)  // of an engine that was built with weight streaming
            engine->setWeightStreamingBudgetV2(engine->getWeightStreamingAutomaticBudget());
        return engine_graph(library_, std::move(engine), std::move(file), spec_of(bundle.manifest, kind));
    }

    std::string describe() const override { return library_->machine.backend + " " + library_->machine.version; }

private:
    std::shared_ptr<TensorRtLibrary> library_;
    std::string target_;
};

}  // namespace

std::unique_ptr<Backend> tensorrt_backend(const std::string& name, const std::string& target) {
    return std::make_unique<TensorRtBackend>(name, target);
}

}  // namespace ptp_core
