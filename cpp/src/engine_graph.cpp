// A deserialised engine and its buffers on the device (runtime/backends/engine_graph.py).
#include <algorithm>
#include <array>

#include "tensorrt.hpp"

namespace ptp_core {
namespace {

constexpr size_t EMPTY_BYTES =
    256;  // TensorRT wants an address of an input without elements too, of its usual alignment

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    if (shape.size() > static_cast<size_t>(nvinfer1::Dims::MAX_DIMS))
        throw Error(PTP_ERROR_BACKEND, "a tensor has too many dimensions");
    dims.nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
    return dims;
}

Shape shape_of(const nvinfer1::Dims& dims) {
    Shape shape;
    for (int32_t i = 0; i < dims.nbDims; ++i) shape.push_back(dims.d[i] < 0 ? ANY : dims.d[i]);
    return shape;
}

ptp_dtype dtype_of(nvinfer1::DataType type, const std::string& name) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return PTP_FLOAT32;
        case nvinfer1::DataType::kHALF: return PTP_FLOAT16;
        case nvinfer1::DataType::kINT64: return PTP_INT64;
        case nvinfer1::DataType::kINT32: return PTP_INT32;
        case nvinfer1::DataType::kBOOL: return PTP_BOOL;
        default:
            throw Error(PTP_ERROR_BACKEND, "tensor " + name + " has a type that no bundle uses")
                .got(static_cast<int>(type));
    }
}

bool is_open(const TensorSpec& spec) {
    return std::find(spec.shape.begin(), spec.shape.end(), ANY) != spec.shape.end();
}

bool fits(const Shape& shape, const TensorSpec& spec) {
    return shape.size() == spec.shape.size() &&
           std::equal(shape.begin(), shape.end(), spec.shape.begin(),
                      [](int64_t size, int64_t wanted) { return wanted == ANY ? size >= 0 : size == wanted; });
}

size_t bytes_of(const Shape& shape, ptp_dtype dtype) { return element_count(shape) * dtype_size(dtype); }

// A tensor on the device; copied to the host when someone asks for it.
class DeviceTensor : public Value {
public:
    DeviceTensor(std::shared_ptr<TensorRtLibrary> library, DeviceMemory::Buffer buffer, ptp_dtype dtype, Shape shape)
        : library_(std::move(library)), buffer_(std::move(buffer)), dtype_(dtype), shape_(std::move(shape)) {}

    ptp_dtype dtype() const override { return dtype_; }
    const Shape& shape() const override { return shape_; }
    const void* host() override {
        const std::lock_guard lock(mutex_);
        if (host_.empty()) {
            host_.resize(std::max<size_t>(bytes_of(shape_, dtype_), 1));
            library_->memory->download(host_.data(), buffer_, bytes_of(shape_, dtype_));
        }
        return host_.data();
    }
    const DeviceMemory::Buffer& buffer() const { return buffer_; }

private:
    std::shared_ptr<TensorRtLibrary> library_;
    DeviceMemory::Buffer buffer_;
    ptp_dtype dtype_;
    Shape shape_;
    std::mutex mutex_;
    std::vector<std::byte> host_;
};

// An input as it came: where its values are.
struct Fed {
    const Shape* shape;
    const void* host;  // null where it is on the device
    DeviceMemory::Buffer device;
    Value* value;
    ptp_dtype dtype;

    const void* on_host() const { return host ? host : value->host(); }
};

Fed fed_from(const Input& input) {
    if (const auto* tensor = std::get_if<const Tensor*>(&input))
        return {&(*tensor)->shape, (*tensor)->bytes.data(), nullptr, nullptr, (*tensor)->dtype};
    Value* value = std::get<ValuePtr>(input).get();
    if (auto* own = dynamic_cast<DeviceTensor*>(value))
        return {&own->shape(), nullptr, own->buffer(), value, own->dtype()};
    return {&value->shape(), value->host(), nullptr, value, value->dtype()};
}

// An engine and its buffers. Each run takes the first profile that admits its shapes, in an execution context of its
// own. Outputs are written into buffers of the size that the largest shapes need; a buffer is free again when the last
// reference to the tensor in it is dropped, so that a decoder needs two sets of cache buffers. Threads take turns.
class EngineGraph : public Graph {
public:
    EngineGraph(std::shared_ptr<TensorRtLibrary> library, std::unique_ptr<nvinfer1::ICudaEngine> engine,
                EngineFile file, const GraphSpec& spec)
        : Graph(spec), library_(std::move(library)), engine_(std::move(engine)), file_(std::move(file)) {
        refuse_differences();
        for (const TensorSpec& input : this->spec().inputs)
            on_host_.push_back(is_on_host(input));
        for (const TensorSpec& output : this->spec().outputs) {
            if (is_on_host(output))
                throw Error(PTP_ERROR_BACKEND, file_.path.string() + " returns " + output.name + " on the host")
                    .advise("export the bundle again");
        }
        check_profiles();
        for (size_t i = 0; i < file_.config.profiles.size(); ++i)
            contexts_.push_back(make_context(static_cast<int32_t>(i)));
        measure_outputs();
    }

    // What the profiles admit, as in Python.
    int64_t max_context() const override {
        int64_t most = 0;
        for (const Profile& profile : file_.config.profiles) {
            const auto mask = profile.shapes.find("attention_mask");  // (1, past + S)
            if (mask != profile.shapes.end()) most = std::max(most, mask->second.max.back());
        }
        return most;
    }

    std::vector<ValuePtr> run(const std::vector<Input>& inputs) override {
        const DeviceMemory::Use use = library_->memory->use();
        std::vector<Fed> fed;
        for (const Input& input : inputs) fed.push_back(fed_from(input));
        check_values(fed);
        const std::lock_guard lock(library_->memory->turn());
        library_->log.clear();
        nvinfer1::IExecutionContext& context = *contexts_[profile_of(fed)];
        std::vector<DeviceMemory::Buffer> held;  // until the run is queued
        // tensors of the host may change when this returns, in whichever way
        const bool reads_host = std::any_of(fed.begin(), fed.end(), [](const Fed& one) { return !one.device; });
        const SynchroniseAtEnd end(reads_host ? library_->memory.get() : nullptr);
        for (size_t i = 0; i < fed.size(); ++i) bind_input(context, i, fed[i], held);
        infer_shapes(context);
        std::vector<ValuePtr> outputs;
        for (size_t i = 0; i < spec().outputs.size(); ++i) outputs.push_back(bind_output(context, i));
        require(context.enqueueV3(library_->memory->stream()), "the run");
        return outputs;
    }

private:
    struct SynchroniseAtEnd {
        explicit SynchroniseAtEnd(DeviceMemory* waited) : memory(waited) {}
        ~SynchroniseAtEnd() {
            if (memory) cudaStreamSynchronize(memory->stream());
        }
        SynchroniseAtEnd(const SynchroniseAtEnd&) = delete;
        SynchroniseAtEnd& operator=(const SynchroniseAtEnd&) = delete;
        DeviceMemory* memory;
    };

    bool is_on_host(const TensorSpec& spec) const {
        return engine_->getTensorLocation(spec.name.c_str()) == nvinfer1::TensorLocation::kHOST;
    }

    [[noreturn]] void fail(const std::string& what) const {
        const std::string words = library_->log.text();
        throw Error(PTP_ERROR_BACKEND, file_.path.string() + " failed").got(words.empty() ? what : what + " " + words);
    }
    void require(bool done, const char* what, const std::string& name = "") const {
        if (!done) fail(what + name + " was refused");
    }

    // What the engine itself says of its tensors must be what its fingerprint says, and what the manifest says.
    void refuse_differences() const {
        std::vector<TensorSpec> inputs, outputs;
        for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            const bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
            (is_input ? inputs : outputs)
                .push_back(
                    {name, dtype_of(engine_->getTensorDataType(name), name), shape_of(engine_->getTensorShape(name))});
        }
        const std::string path = file_.path.string(), advice = "build it again: " + file_.rebuild;
        outputs = settled(outputs);
        refuse_difference(path, "inputs", inputs, file_.config.inputs, advice, "its config.json");
        refuse_difference(path, "outputs", outputs, settled(file_.config.outputs), advice, "its config.json");
        refuse_difference(path, "inputs", inputs, spec().inputs, advice);
        refuse_difference(path, "outputs", outputs, spec().outputs, advice);
        if (static_cast<size_t>(engine_->getNbOptimizationProfiles()) != file_.config.profiles.size()) {
            throw Error(PTP_ERROR_BACKEND, path + " has other profiles than its config.json")
                .got(engine_->getNbOptimizationProfiles())
                .expected(static_cast<long long>(file_.config.profiles.size()))
                .advise(advice);
        }
    }

    // An engine may know less of its outputs than the graph did: then each run compares.
    std::vector<TensorSpec> settled(std::vector<TensorSpec> outputs) const {
        for (TensorSpec& found : outputs) {
            for (const TensorSpec& wanted : spec().outputs) {
                if (wanted.name != found.name || wanted.shape.size() != found.shape.size()) continue;
                for (size_t i = 0; i < found.shape.size(); ++i) {
                    if (found.shape[i] == ANY) found.shape[i] = wanted.shape[i];
                }
            }
        }
        return outputs;
    }

    // Refuse a fingerprint whose profiles do not bound what has to be bounded.
    void check_profiles() const {
        for (const Profile& profile : file_.config.profiles) {
            std::vector<std::string> problems;
            size_t known = 0;
            for (size_t i = 0; i < spec().inputs.size(); ++i) {
                const TensorSpec& input = spec().inputs[i];
                const auto range = profile.shapes.find(input.name);
                if (range == profile.shapes.end()) {
                    if (is_open(input) || on_host_[i]) problems.push_back("no range of " + input.name);
                    continue;
                }
                ++known;
                const size_t rank = is_open(input) ? input.shape.size() : element_count(input.shape);
                // a range of a fixed input bounds its values, which are read as integers
                const bool has_kind = is_open(input) ? fits(range->second.max, input)
                                                     : input.dtype == PTP_INT64 || input.dtype == PTP_INT32;
                const bool suits = range->second.min.size() == rank && range->second.max.size() == rank && has_kind;
                if (!suits) problems.push_back("a range of " + input.name);
            }
            if (known != profile.shapes.size()) problems.push_back("a range of no input");
            if (problems.empty()) continue;
            throw Error(PTP_ERROR_BACKEND, "profile " + profile.name + " in " +
                                               (file_.path.parent_path() / "config.json").string() +
                                               " does not suit the engine")
                .got(join(problems, ", ", problems.size()))
                .advise("build it again: " + file_.rebuild);
        }
    }

    std::unique_ptr<nvinfer1::IExecutionContext> make_context(int32_t profile) {
        std::unique_ptr<nvinfer1::IExecutionContext> context(
            engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE));
        if (!context) fail("no execution context");
        require(context->setOptimizationProfileAsync(profile, library_->memory->stream()),
                "profile ", std::to_string(profile));
        library_->memory->synchronise();
        return context;
    }

    // Find the bytes that each output takes at the largest shapes of any profile, and allocate two sets of them.
    void measure_outputs() {
        sizes_.assign(spec().outputs.size(), 1);
        for (size_t number = 0; number < contexts_.size(); ++number) {
            nvinfer1::IExecutionContext& context = *contexts_[number];
            const auto& shapes = file_.config.profiles[number].shapes;
            std::vector<Tensor> values;
            values.reserve(spec().inputs.size());
            for (size_t i = 0; i < spec().inputs.size(); ++i) {
                const TensorSpec& input = spec().inputs[i];
                if (is_open(input)) {
                    require(context.setInputShape(input.name.c_str(), dims_of(shapes.at(input.name).max)),
                            "the shape of ", input.name);
                } else if (on_host_[i]) {
                    values.push_back(tensor_of(input.dtype, input.shape, shapes.at(input.name).max));
                    require(context.setTensorAddress(input.name.c_str(), values.back().bytes.data()),
                            "the address of ", input.name);
                }
            }
            infer_shapes(context);
            for (size_t i = 0; i < sizes_.size(); ++i) {
                const TensorSpec& output = spec().outputs[i];
                sizes_[i] =
                    std::max(sizes_[i], bytes_of(shape_of(context.getTensorShape(output.name.c_str())), output.dtype));
            }
        }
        std::vector<DeviceMemory::Buffer> reserved;  // a device without room for them says so now
        for (int set = 0; set < 2; ++set) {
            for (const size_t size : sizes_) reserved.push_back(library_->memory->take(size));
        }
    }

    void check_values(const std::vector<Fed>& fed) const {
        std::vector<std::string> problems;
        for (size_t i = 0; i < spec().inputs.size(); ++i) {
            const TensorSpec& input = spec().inputs[i];
            if (i < fed.size() && fed[i].dtype == input.dtype && fits(*fed[i].shape, input)) continue;
            problems.push_back(i < fed.size()
                                   ? input.name + " is " + describe({input.name, fed[i].dtype, *fed[i].shape}) +
                                         " instead of " + describe(input)
                                   : input.name + " missing");
        }
        if (problems.empty()) return;
        throw Error(PTP_ERROR_BACKEND, "the values do not fit the inputs of " + file_.path.filename().string())
            .got(join(problems, ", ", problems.size()));
    }

    // Return what a profile bounds of an input: its shape, or its values where the shape is fixed.
    static Shape measure(const TensorSpec& input, const Fed& fed) {
        if (is_open(input)) return *fed.shape;
        const void* values = fed.on_host();
        Shape measured;
        for (size_t i = 0; i < element_count(*fed.shape); ++i) {
            measured.push_back(input.dtype == PTP_INT64 ? static_cast<const int64_t*>(values)[i]
                                                        : static_cast<const int32_t*>(values)[i]);
        }
        return measured;
    }

    size_t profile_of(const std::vector<Fed>& fed) const {
        for (size_t number = 0; number < file_.config.profiles.size(); ++number) {
            const auto& shapes = file_.config.profiles[number].shapes;
            bool admits = true;
            for (size_t i = 0; i < fed.size(); ++i) {
                const auto range = shapes.find(spec().inputs[i].name);
                if (range == shapes.end()) continue;
                const Shape size = measure(spec().inputs[i], fed[i]);
                for (size_t d = 0; d < size.size(); ++d)
                    admits = admits && size[d] >= range->second.min[d] && size[d] <= range->second.max[d];
            }
            if (admits) return number;
        }
        std::vector<std::string> found;
        for (size_t i = 0; i < fed.size(); ++i) {
            const TensorSpec& input = spec().inputs[i];
            if (file_.config.profiles.front().shapes.count(input.name))
                found.push_back(input.name + " " + describe(measure(input, fed[i])));
        }
        throw Error(PTP_ERROR_BACKEND, file_.path.string() + " has no profile for these shapes")
            .got(join(found, ", ", 8))
            .advise("build it again with a larger --max-context: " + file_.rebuild);
    }

    void bind_input(nvinfer1::IExecutionContext& context, size_t index, const Fed& fed,
                    std::vector<DeviceMemory::Buffer>& held) {
        const TensorSpec& input = spec().inputs[index];
        const char* name = input.name.c_str();
        if (is_open(input)) require(context.setInputShape(name, dims_of(*fed.shape)), "the shape of ", input.name);
        if (on_host_[index]) {
            require(context.setTensorAddress(name, const_cast<void*>(fed.on_host())), "the address of ", input.name);
            return;
        }
        DeviceMemory::Buffer buffer = fed.device;
        if (!buffer) {
            const size_t size = bytes_of(*fed.shape, input.dtype);
            buffer = library_->memory->take(std::max(size ? largest_bytes(input, size) : 0, EMPTY_BYTES));
            library_->memory->upload(buffer, fed.host, size);
        }
        require(context.setTensorAddress(name, buffer.get()), "the address of ", input.name);
        held.push_back(std::move(buffer));
    }

    // Return the bytes of an input's largest shape, so that its buffer serves every run.
    size_t largest_bytes(const TensorSpec& input, size_t least) const {
        if (!is_open(input)) return least;
        for (const Profile& profile : file_.config.profiles)
            least = std::max(least, bytes_of(profile.shapes.at(input.name).max, input.dtype));
        return least;
    }

    ValuePtr bind_output(nvinfer1::IExecutionContext& context, size_t index) {
        const TensorSpec& output = spec().outputs[index];
        Shape shape = shape_of(context.getTensorShape(output.name.c_str()));
        if (!fits(shape, output) || bytes_of(shape, output.dtype) > sizes_[index]) {
            throw Error(PTP_ERROR_BACKEND, file_.path.string() + " computes another shape of " + output.name)
                .got(describe(shape));
        }
        DeviceMemory::Buffer buffer = library_->memory->take(sizes_[index]);
        require(context.setTensorAddress(output.name.c_str(), buffer.get()), "the address of ", output.name);
        return std::make_shared<DeviceTensor>(library_, std::move(buffer), output.dtype, std::move(shape));
    }

    void infer_shapes(nvinfer1::IExecutionContext& context) const {
        std::array<const char*, 8> names{};
        const int32_t unknown = context.inferShapes(static_cast<int32_t>(names.size()), names.data());
        if (unknown) fail(std::string("no shape of ") + (unknown > 0 && names[0] ? names[0] : "a tensor"));
    }

    std::shared_ptr<TensorRtLibrary> library_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    EngineFile file_;
    std::vector<bool> on_host_;  // of each input, whether TensorRT reads it on the host
    std::vector<std::unique_ptr<nvinfer1::IExecutionContext>> contexts_;
    std::vector<size_t> sizes_;  // of each output, at its largest
};

}  // namespace

std::unique_ptr<Graph> engine_graph(std::shared_ptr<TensorRtLibrary> library,
                                    std::unique_ptr<nvinfer1::ICudaEngine> engine, EngineFile file,
                                    const GraphSpec& spec) {
    return std::make_unique<EngineGraph>(std::move(library), std::move(engine), std::move(file), spec);
}

}  // namespace ptp_core
