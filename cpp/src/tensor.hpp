// Tensors on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "manifest.hpp"

namespace ptp_core {

// Return the product of the sizes; throws Error where it is negative or too large for memory.
size_t element_count(const Shape& shape);

float half_to_float(uint16_t half);
// Rounded to nearest, ties to even.
uint16_t float_to_half(float value);

struct Tensor {
    ptp_dtype dtype = PTP_FLOAT32;
    Shape shape;
    std::vector<std::byte> bytes;

    Tensor() = default;
    // All zeros.
    Tensor(ptp_dtype dtype, Shape shape);

    size_t count() const { return bytes.size() / dtype_size(dtype); }
    template <typename T>
    T* as() {
        return reinterpret_cast<T*>(bytes.data());
    }
    template <typename T>
    const T* as() const {
        return reinterpret_cast<const T*>(bytes.data());
    }
};

// Return a tensor of `dtype` with the given values.
Tensor tensor_of(ptp_dtype dtype, Shape shape, const std::vector<int64_t>& values);

// Copy floats into a tensor of float32 or float16, from element `offset` on; throws Error for other types.
void put_floats(Tensor& tensor, size_t offset, const float* values, size_t count);

// Copy `count` elements of one floating-point type to another.
void convert_floats(ptp_dtype from, const void* in, ptp_dtype to, void* out, size_t count);

}  // namespace ptp_core
