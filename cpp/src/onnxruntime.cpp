// ONNX Runtime, found when the program runs: any library of 1.20 or newer will do.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>
#include <sched.h>

#include <array>
#include <climits>
#include <cstdlib>
#include <optional>
#include <utility>

#include "error.hpp"
#include "graph.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

// The oldest interface that has all that is used here; newer libraries still offer it. It must not follow the headers.
constexpr uint32_t API_VERSION = 20;
constexpr const char* OLDEST = "1.20";
constexpr const char* VARIABLE = "PTP_ONNXRUNTIME";
constexpr std::array<const char*, 2> NAMES = {"libonnxruntime.so.1", "libonnxruntime.so"};

constexpr std::array<std::pair<const char*, const char*>, 2> EXACT_SESSION = {{
    {"session.qdq_matmulnbits_accuracy_level", "1"},
    {"mlas.enable_gemm_fastmath_arm64_bfloat16", "0"},
}};

struct Library {
    std::shared_ptr<void> handle;
    const OrtApi* api;
    std::string version;

    // Throw what ONNX Runtime says, under a sentence of ours.
    void check(OrtStatus* status, const std::string& what) const {
        if (!status) return;
        const std::string message = api->GetErrorMessage(status);
        api->ReleaseStatus(status);
        throw Error(PTP_ERROR_BACKEND, what).got(message);
    }
};

// What ONNX Runtime made, to be given back through its own function.
template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

template <typename T>
class Out {  // an output argument of ONNX Runtime's functions
public:
    explicit Out(void (*release)(T*)) : owned_(nullptr, release) {}
    ~Out() { owned_.reset(raw_); }
    operator T**() { return &raw_; }
    Owned<T> take() {
        owned_.reset(std::exchange(raw_, nullptr));
        return std::move(owned_);
    }

private:
    T* raw_ = nullptr;
    Owned<T> owned_;
};

Library open_library(const std::string& path) {
    const char* variable = std::getenv(VARIABLE);
    std::vector<std::string> names(NAMES.begin(), NAMES.end());
    if (!path.empty()) {
        names = {path};
    } else if (variable && *variable) {
        names = {variable};
    }
    void* handle = nullptr;
    std::string problem;
    for (const std::string& name : names) {
        // it keeps threads and state of its own until the process ends: never unload it
        handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (handle) break;
        problem = dlerror();
    }
    if (!handle) {
        throw Error(PTP_ERROR_BACKEND, "ONNX Runtime cannot be loaded")
            .got(problem)
            .advise(std::string("give the path of libonnxruntime.so as an option or in ") + VARIABLE);
    }
    Library library{{handle, dlclose}, nullptr, ""};
    const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    if (!base) throw Error(PTP_ERROR_BACKEND, names.front() + " is not ONNX Runtime");
    library.version = base()->GetVersionString();
    library.api = base()->GetApi(API_VERSION);
    if (!library.api)
        throw Error(PTP_ERROR_BACKEND, "ONNX Runtime is too old")
            .got(library.version)
            .expected(std::string(OLDEST) + " or newer");
    return library;
}

ptp_dtype dtype_of(ONNXTensorElementDataType type, const std::string& name) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return PTP_FLOAT32;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return PTP_FLOAT16;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return PTP_INT64;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return PTP_INT32;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return PTP_BOOL;
        default:
            throw Error(PTP_ERROR_BACKEND, "tensor " + name + " has a type that no bundle uses")
                .got(static_cast<int>(type));
    }
}

ONNXTensorElementDataType onnx_type(ptp_dtype dtype) {
    constexpr std::array<ONNXTensorElementDataType, 5> TYPES = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
    return TYPES[dtype];
}

TensorSpec spec_from(const Library& library, std::string name, const OrtTensorTypeAndShapeInfo* info) {
    const std::string what = "ONNX Runtime cannot describe " + name;
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    size_t rank = 0;
    library.check(library.api->GetTensorElementType(info, &type), what);
    library.check(library.api->GetDimensionsCount(info, &rank), what);
    TensorSpec spec{std::move(name), PTP_FLOAT32, Shape(rank)};
    library.check(library.api->GetDimensions(info, spec.shape.data(), rank), what);
    spec.dtype = dtype_of(type, spec.name);
    return spec;
}

class OrtTensor : public Value {
public:
    OrtTensor(std::shared_ptr<const Library> library, Owned<OrtValue> value)
        : library_(std::move(library)), value_(std::move(value)) {}

    ptp_dtype dtype() const override { return spec().dtype; }
    const Shape& shape() const override { return spec().shape; }
    const void* host() override {
        void* data = nullptr;
        library_->check(library_->api->GetTensorMutableData(value_.get(), &data), "ONNX Runtime returned no tensor");
        return data;
    }
    OrtValue* get() const { return value_.get(); }

private:
    // Most outputs are fed back without a look at them.
    const TensorSpec& spec() const {
        if (!spec_) {
            Out<OrtTensorTypeAndShapeInfo> out(library_->api->ReleaseTensorTypeAndShapeInfo);
            library_->check(library_->api->GetTensorTypeAndShape(value_.get(), out), "ONNX Runtime returned no tensor");
            spec_ = spec_from(*library_, "an output", out.take().get());
        }
        return *spec_;
    }

    std::shared_ptr<const Library> library_;
    Owned<OrtValue> value_;
    mutable std::optional<TensorSpec> spec_;
};

class OrtGraph : public Graph {
public:
    OrtGraph(std::shared_ptr<const Library> library, const std::shared_ptr<OrtEnv>& env, const std::string& path,
             GraphSpec spec, int threads)
        : Graph(std::move(spec)),
          library_(std::move(library)),
          env_(env),
          session_(nullptr, api().ReleaseSession),
          memory_(nullptr, api().ReleaseMemoryInfo) {
        const std::string what = "ONNX Runtime cannot load " + path;
        Out<OrtSessionOptions> made_options(api().ReleaseSessionOptions);
        library_->check(api().CreateSessionOptions(made_options), what);
        const auto options = made_options.take();
        library_->check(api().SetSessionLogSeverityLevel(options.get(), ORT_LOGGING_LEVEL_FATAL), what);
        // the same arithmetic on every processor (EXACT_SESSION in src/ptp/tolerances.py)
        for (const auto& [setting, value] : EXACT_SESSION)
            library_->check(api().AddSessionConfigEntry(options.get(), setting, value), what);
        if (threads) library_->check(api().SetIntraOpNumThreads(options.get(), threads), what);
        Out<OrtSession> session(api().ReleaseSession);
        library_->check(api().CreateSession(env_.get(), path.c_str(), options.get(), session), what);
        session_ = session.take();
        Out<OrtMemoryInfo> memory(api().ReleaseMemoryInfo);
        library_->check(api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, memory), what);
        memory_ = memory.take();
        constexpr const char* ADVICE = "export the bundle again";
        refuse_difference(path, "inputs", tensors(true), this->spec().inputs, ADVICE);
        refuse_difference(path, "outputs", tensors(false), this->spec().outputs, ADVICE);
    }

    std::vector<ValuePtr> run(const std::vector<Input>& inputs) override {
        Out<OrtIoBinding> made(api().ReleaseIoBinding);
        check(api().CreateIoBinding(session_.get(), made));
        const auto binding = made.take();
        std::vector<Owned<OrtValue>> wrapped;  // host tensors, until the run is over
        for (size_t i = 0; i < inputs.size(); ++i) {
            const std::string& name = spec().inputs[i].name;
            check(api().BindInput(binding.get(), name.c_str(), bound(inputs[i], wrapped)));
        }
        for (const TensorSpec& output : spec().outputs) {
            check(api().BindOutputToDevice(binding.get(), output.name.c_str(), memory_.get()));
        }
        check(api().RunWithBinding(session_.get(), nullptr, binding.get()));
        return outputs_of(*binding);
    }

private:
    const OrtApi& api() const { return *library_->api; }
    void check(OrtStatus* status) const { library_->check(status, "ONNX Runtime failed"); }

    const OrtValue* bound(const Input& input, std::vector<Owned<OrtValue>>& wrapped) const {
        if (const auto* value = std::get_if<ValuePtr>(&input)) return dynamic_cast<const OrtTensor&>(**value).get();
        const Tensor& tensor = *std::get<const Tensor*>(input);
        static constexpr std::byte nothing[8] = {};  // ONNX Runtime wants an address for a tensor without elements too
        auto* data = const_cast<std::byte*>(tensor.bytes.empty() ? nothing : tensor.bytes.data());
        Out<OrtValue> value(api().ReleaseValue);
        check(api().CreateTensorWithDataAsOrtValue(memory_.get(), data, tensor.bytes.size(), tensor.shape.data(),
                                                   tensor.shape.size(), onnx_type(tensor.dtype), value));
        wrapped.push_back(value.take());
        return wrapped.back().get();
    }

    std::vector<ValuePtr> outputs_of(const OrtIoBinding& binding) const {
        OrtAllocator* allocator = nullptr;
        check(api().GetAllocatorWithDefaultOptions(&allocator));
        OrtValue** values = nullptr;
        size_t count = 0;
        check(api().GetBoundOutputValues(&binding, allocator, &values, &count));
        std::vector<Owned<OrtValue>> owned;
        for (size_t i = 0; i < count; ++i) owned.emplace_back(values[i], api().ReleaseValue);
        if (values) check(api().AllocatorFree(allocator, values));
        if (count != spec().outputs.size()) throw Error(PTP_ERROR_BACKEND, "ONNX Runtime returned other outputs");
        std::vector<ValuePtr> outputs;
        for (auto& value : owned) outputs.push_back(std::make_shared<OrtTensor>(library_, std::move(value)));
        return outputs;
    }

    std::vector<TensorSpec> tensors(bool inputs) const {
        OrtAllocator* allocator = nullptr;
        check(api().GetAllocatorWithDefaultOptions(&allocator));
        size_t count = 0;
        check(inputs ? api().SessionGetInputCount(session_.get(), &count)
                     : api().SessionGetOutputCount(session_.get(), &count));
        std::vector<TensorSpec> specs;
        for (size_t i = 0; i < count; ++i) {
            char* text = nullptr;
            check(inputs ? api().SessionGetInputName(session_.get(), i, allocator, &text)
                         : api().SessionGetOutputName(session_.get(), i, allocator, &text));
            std::string name = text;
            check(api().AllocatorFree(allocator, text));
            Out<OrtTypeInfo> made(api().ReleaseTypeInfo);
            check(inputs ? api().SessionGetInputTypeInfo(session_.get(), i, made)
                         : api().SessionGetOutputTypeInfo(session_.get(), i, made));
            const auto type = made.take();
            const OrtTensorTypeAndShapeInfo* info = nullptr;
            check(api().CastTypeInfoToTensorInfo(type.get(), &info));
            if (!info) throw Error(PTP_ERROR_BACKEND, name + " is not a tensor");
            specs.push_back(spec_from(*library_, std::move(name), info));
        }
        return specs;
    }

    std::shared_ptr<const Library> library_;
    std::shared_ptr<OrtEnv> env_;
    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
};

class OrtBackend : public Backend {
public:
    OrtBackend(const std::string& path, int threads)
        : library_(std::make_shared<Library>(open_library(path))), threads_(threads) {
        cpu_set_t usable;
        const int most = sched_getaffinity(0, sizeof usable, &usable) == 0 ? CPU_COUNT(&usable) : INT_MAX;
        if (threads < 0 || threads > most)
            throw Error(PTP_ERROR_CONFIG, "threads is out of range")
                .got(threads)
                .expected("1 to " + std::to_string(most) + ", the CPUs of this machine, or 0");
        OrtEnv* env = nullptr;
        library_->check(library_->api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "ptp", &env),
                        "ONNX Runtime cannot be started");
        env_ = {env, library_->api->ReleaseEnv};
    }

    std::unique_ptr<Graph> load(const Bundle& bundle, GraphKind kind) override {
        const GraphSpec& spec = spec_of(bundle.manifest, kind);
        // looking rows up needs no threads, and those of the embedding would spin while the decoder computes
        const int threads = kind == GraphKind::embed ? 1 : threads_;
        auto graph = std::make_unique<OrtGraph>(library_, env_, bundle.path(spec.file).string(), spec, threads);
        bundle.require_unchanged();
        return graph;
    }

    std::string describe() const override { return "ONNX Runtime " + library_->version; }

private:
    std::shared_ptr<const Library> library_;
    std::shared_ptr<OrtEnv> env_;
    int threads_;
};

}  // namespace

std::unique_ptr<Backend> onnxruntime_backend(const std::string& library, int threads) {
    return std::make_unique<OrtBackend>(library, threads);
}

}  // namespace ptp_core
