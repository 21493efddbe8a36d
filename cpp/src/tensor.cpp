#include "tensor.hpp"

#include <cstring>

#include "error.hpp"

namespace ptp_core {
namespace {

constexpr int64_t MAX_COUNT = int64_t{1} << 40;

}  // namespace

size_t element_count(const Shape& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) {
        if (size < 0 || (size > 0 && count > MAX_COUNT / size))
            throw Error(PTP_ERROR_BACKEND, "a tensor has an impossible shape").got(describe(shape));
        count *= size;
    }
    return static_cast<size_t>(count);
}

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(fraction) * 0x1p-24f;
    } else {
        const uint32_t bits = (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
        std::memcpy(&value, &bits, sizeof value);
    }
    return sign ? -value : value;
}

uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) return sign | 0x7E00u;   // NaN
    if (bits >= 0x477FF000u) return sign | 0x7C00u;  // rounds to beyond 65504
    uint32_t kept, lost, half_way;
    if (bits < 0x38800000u) {  // below 2^-14: no implicit bit
        const uint32_t shift = 126u - (bits >> 23);
        if (shift > 24) return sign;
        const uint32_t fraction = (bits & 0x7FFFFFu) | 0x800000u;
        kept = fraction >> shift, half_way = 1u << (shift - 1), lost = fraction & ((1u << shift) - 1);
    } else {
        kept = (bits - 0x38000000u) >> 13, half_way = 0x1000u, lost = bits & 0x1FFFu;
    }
    if (lost > half_way || (lost == half_way && (kept & 1))) ++kept;
    return static_cast<uint16_t>(sign | kept);
}

Tensor::Tensor(ptp_dtype type, Shape sizes)
    : dtype(type), shape(std::move(sizes)), bytes(element_count(shape) * dtype_size(dtype)) {}

Tensor tensor_of(ptp_dtype dtype, Shape shape, const std::vector<int64_t>& values) {
    Tensor tensor(dtype, std::move(shape));
    for (size_t i = 0; i < values.size(); ++i) {
        switch (dtype) {
            case PTP_INT64: tensor.as<int64_t>()[i] = values[i]; break;
            case PTP_INT32: tensor.as<int32_t>()[i] = static_cast<int32_t>(values[i]); break;
            case PTP_BOOL: tensor.as<uint8_t>()[i] = values[i] != 0; break;
            case PTP_FLOAT32:
            case PTP_FLOAT16: {
                const auto value = static_cast<float>(values[i]);
                put_floats(tensor, i, &value, 1);
            }
        }
    }
    return tensor;
}

void put_floats(Tensor& tensor, size_t offset, const float* values, size_t count) {
    convert_floats(PTP_FLOAT32, values, tensor.dtype, tensor.bytes.data() + offset * dtype_size(tensor.dtype), count);
}

void convert_floats(ptp_dtype from, const void* in, ptp_dtype to, void* out, size_t count) {
    if (from > PTP_FLOAT16 || to > PTP_FLOAT16)
        throw Error(PTP_ERROR_BUNDLE, "a tensor of numbers is not of a floating-point type");
    if (from == to) {
        if (count) std::memcpy(out, in, count * dtype_size(to));
        return;
    }
    for (size_t i = 0; i < count; ++i) {
        if (to == PTP_FLOAT32) {
            static_cast<float*>(out)[i] = half_to_float(static_cast<const uint16_t*>(in)[i]);
        } else {
            static_cast<uint16_t*>(out)[i] = float_to_half(static_cast<const float*>(in)[i]);
        }
    }
}

}  // namespace ptp_core
