// Stands for tensorrt.cpp where libptp is built without NvInfer.h.
#include "error.hpp"
#include "graph.hpp"

namespace ptp_core {

std::unique_ptr<Backend> tensorrt_backend(const std::string& name, const std::string&) {
    throw Error(PTP_ERROR_BACKEND, "this libptp was built without " + name)
        .advise("build it where NvInfer.h is found (docs/cpp.md)");
}

}  // namespace ptp_core
