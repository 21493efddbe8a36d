// What a backend must offer: graphs that run on tensors, which may stay on the device between runs.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "bundle.hpp"
#include "tensor.hpp"

namespace ptp_core {

// A tensor that a graph returned; it stays where the graph ran until someone asks for it.
class Value {
public:
    virtual ~Value() = default;
    virtual ptp_dtype dtype() const = 0;
    virtual const Shape& shape() const = 0;
    // Return the values on the host; they live as long as this.
    virtual const void* host() = 0;

    size_t count() const { return element_count(shape()); }
};

using ValuePtr = std::shared_ptr<Value>;

// Either a tensor on the host, or what a graph of the same backend returned.
using Input = std::variant<const Tensor*, ValuePtr>;

// A loaded graph. Several threads may run it at once: a run leaves nothing behind in it.
class Graph {
public:
    explicit Graph(GraphSpec spec) : spec_(std::move(spec)) {}
    virtual ~Graph() = default;
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    const GraphSpec& spec() const { return spec_; }

    // Tokens that the cache has room for; 0 where nothing but memory is a limit.
    virtual int64_t max_context() const { return 0; }

    // Run on all inputs, in the order of the specification, and return all outputs likewise; throws Error.
    virtual std::vector<ValuePtr> run(const std::vector<Input>& inputs) = 0;

    // Return the place of a tensor in the specification; throws Error where there is none.
    size_t input_index(const std::string& name) const;
    size_t output_index(const std::string& name) const;

private:
    GraphSpec spec_;
};

enum class GraphKind { vision, embed, decoder };

// A backend: it loads a bundle's graphs and refuses those whose inputs and outputs are not the manifest's.
class Backend {
public:
    virtual ~Backend() = default;
    virtual std::unique_ptr<Graph> load(const Bundle& bundle, GraphKind kind) = 0;
    // Return what runs the graphs, for people: name and version.
    virtual std::string describe() const = 0;
};

const GraphSpec& spec_of(const Manifest& manifest, GraphKind kind);

// Refuse a graph whose tensors are not the expected ones; throws Error with all differences.
void refuse_difference(const std::string& file, const std::string& what, const std::vector<TensorSpec>& got,
                       const std::vector<TensorSpec>& expected, const std::string& advice,
                       const std::string& of = "the manifest");

// ONNX Runtime on the CPU.
//
// `library` is the path of its shared library; empty: $PTP_ONNXRUNTIME, else the system's. Throws Error.
std::unique_ptr<Backend> onnxruntime_backend(const std::string& library, int threads);

// TensorRT or TensorRT-RTX (`name`); throws Error where libptp was built without it.
//
// `target` is a folder of engines; empty: the only one for this GPU.
std::unique_ptr<Backend> tensorrt_backend(const std::string& name, const std::string& target);

}  // namespace ptp_core
