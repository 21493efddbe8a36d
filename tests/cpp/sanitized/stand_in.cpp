// "Engines" are lines of text, FOLDER KIND PROFILES: the bundle's graph of that kind, run by ONNX Runtime.
#include <NvInfer.h>

#include <map>
#include <sstream>

#include "bundle.hpp"
#include "graph.hpp"

int32_t getInferLibMajorVersion() noexcept { return 10; }
int32_t getInferLibMinorVersion() noexcept { return 3; }
int32_t getInferLibPatchVersion() noexcept { return 0; }
int32_t getInferLibBuildVersion() noexcept { return 26; }

namespace nvinfer1 {
namespace {

using ptp_core::TensorSpec;

Dims to_dims(const ptp_core::Shape& shape) {
    Dims dims{static_cast<int32_t>(shape.size()), {}};
    for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
    return dims;
}

ptp_core::Shape to_shape(const Dims& dims) { return {dims.d, dims.d + dims.nbDims}; }

class Context : public IExecutionContext {
public:
    Context(ptp_core::Graph& graph, ILogger& logger) : graph_(graph), logger_(logger) {
        for (const TensorSpec& spec : graph.spec().inputs) shapes_[spec.name] = spec.shape;
    }

    bool setOptimizationProfileAsync(int32_t, cudaStream_t) noexcept override { return true; }
    bool setInputShape(char const* name, Dims const& dims) noexcept override {
        shapes_[name] = to_shape(dims);
        return true;
    }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        addresses_[name] = data;
        return data != nullptr;
    }

    // Open sizes of outputs: one sequence; the cache grows by the new tokens; rows are what `num_kept` says; embeddings
    // are as many as tokens.
    Dims getTensorShape(char const* tensor) const noexcept override {
        const std::string name = tensor;
        if (const auto input = shapes_.find(name); input != shapes_.end()) return to_dims(input->second);
        ptp_core::Shape shape = graph_.spec().outputs[graph_.output_index(name)].shape;
        for (size_t i = 0; i < shape.size(); ++i) {
            if (shape[i] != ptp_core::ANY) continue;
            if (const auto kept = addresses_.find("num_kept"); kept != addresses_.end())
                shape[i] = *static_cast<const int64_t*>(kept->second);
            else if (const auto ids = shapes_.find("input_ids"); ids != shapes_.end())
                shape[i] = ids->second[i];
            else
                shape[i] = i == 0 ? 1 : shapes_.at("attention_mask")[1] + (name == "next_attention_mask");
        }
        return to_dims(shape);
    }

    int32_t inferShapes(int32_t, char const** names) noexcept override {
        for (const auto& [name, shape] : shapes_) {
            for (const int64_t size : shape) {
                if (size != ptp_core::ANY) continue;
                *names = name.c_str();
                return 1;
            }
        }
        return 0;
    }

    bool enqueueV3(cudaStream_t) noexcept override {
        try {
            std::vector<ptp_core::Tensor> tensors;
            for (const TensorSpec& spec : graph_.spec().inputs) {
                tensors.emplace_back(spec.dtype, shapes_.at(spec.name));
                if (!tensors.back().bytes.empty())
                    std::memcpy(tensors.back().bytes.data(), addresses_.at(spec.name), tensors.back().bytes.size());
            }
            std::vector<ptp_core::Input> inputs;
            for (const ptp_core::Tensor& tensor : tensors) inputs.emplace_back(&tensor);
            const auto outputs = graph_.run(inputs);
            for (size_t i = 0; i < outputs.size(); ++i) {
                const TensorSpec& spec = graph_.spec().outputs[i];
                std::memcpy(addresses_.at(spec.name), outputs[i]->host(),
                            outputs[i]->count() * ptp_core::dtype_size(spec.dtype));
            }
            return true;
        } catch (const std::exception& error) {
            logger_.log(ILogger::Severity::kERROR, error.what());
            return false;
        }
    }

private:
    ptp_core::Graph& graph_;
    ILogger& logger_;
    std::map<std::string, ptp_core::Shape> shapes_;
    std::map<std::string, void*> addresses_;
};

class Engine : public ICudaEngine {
public:
    Engine(std::unique_ptr<ptp_core::Graph> graph, int32_t profiles, ILogger& logger)
        : graph_(std::move(graph)), profiles_(profiles), logger_(logger) {
        for (const auto* specs : {&graph_->spec().inputs, &graph_->spec().outputs}) {
            for (const TensorSpec& spec : *specs) specs_.push_back(spec);
        }
    }

    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(specs_.size()); }
    char const* getIOTensorName(int32_t index) const noexcept override {
        return specs_[static_cast<size_t>(index)].name.c_str();
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return index_of(name) < graph_->spec().inputs.size() ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(char const* name) const noexcept override {
        constexpr DataType TYPES[] = {DataType::kFLOAT, DataType::kHALF, DataType::kINT64, DataType::kINT32,
                                      DataType::kBOOL};
        return TYPES[specs_[index_of(name)].dtype];
    }
    Dims getTensorShape(char const* name) const noexcept override { return to_dims(specs_[index_of(name)].shape); }
    TensorLocation getTensorLocation(char const* name) const noexcept override {
        return std::string(name) == "num_kept" ? TensorLocation::kHOST : TensorLocation::kDEVICE;
    }
    int32_t getNbOptimizationProfiles() const noexcept override { return profiles_; }
    int64_t getStreamableWeightsSize() const noexcept override { return 0; }
    int64_t getWeightStreamingAutomaticBudget() const noexcept override { return 0; }
    bool setWeightStreamingBudgetV2(int64_t) noexcept override { return true; }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
        return new Context(*graph_, logger_);
    }

private:
    size_t index_of(const std::string& name) const {
        size_t i = 0;
        while (specs_[i].name != name) ++i;
        return i;
    }

    std::unique_ptr<ptp_core::Graph> graph_;
    int32_t profiles_;
    ILogger& logger_;
    std::vector<TensorSpec> specs_;
};

class Runtime : public IRuntime {
public:
    explicit Runtime(ILogger& logger) : logger_(logger) {}

    void setEngineHostCodeAllowed(bool) noexcept override {}
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        try {
            std::istringstream text(std::string(static_cast<const char*>(blob), size));
            std::string folder, kind;
            int32_t profiles = 0;
            if (!(text >> folder >> kind >> profiles))
                throw std::runtime_error("The engine plan file is not compatible with this version of TensorRT");
            const ptp_core::Bundle bundle = ptp_core::open_bundle(folder);
            auto graph = ptp_core::onnxruntime_backend("", 1)->load(
                bundle, kind == "visual"  ? ptp_core::GraphKind::vision
                        : kind == "embed" ? ptp_core::GraphKind::embed
                                          : ptp_core::GraphKind::decoder);
            return new Engine(std::move(graph), profiles, logger_);
        } catch (const std::exception& error) {
            logger_.log(ILogger::Severity::kERROR, error.what());
            return nullptr;
        }
    }

private:
    ILogger& logger_;
};

}  // namespace

IRuntime* createInferRuntime(ILogger& logger) noexcept { return new Runtime(logger); }

}  // namespace nvinfer1
