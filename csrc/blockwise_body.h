// The block loops that every instruction set shares. Included once by each of blockwise_*.cpp, and all of it in an
// unnamed namespace: a function with external linkage would be merged across files that are compiled for different
// processors, and the portable path could end up with AVX-512 instructions.
//
// Isa supplies, for a count that is a multiple of 32:
//   float absmax(const T* x, int64_t count)                            NaN where any element is NaN
//   void encode(const T* x, int64_t count, float reciprocal, const Quantize&, uint8_t* packed)
//   void scale_table(const float* codebook, float scale, T* table)     table[i] = codebook[i] * scale, rounded to T
//   void expand(const uint8_t* packed, int64_t count, const T* table, T* out, bool stream)
//                                                       out[i] = table[code i], 16 entries
//   void finish_stream()                                               orders streamed writes before what follows
#pragma once

#include <cstring>

#include "blockwise.h"

namespace lorasmith {
namespace {

constexpr float kSmallestAbsmax = 1e-38f;

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float widen(float value) { return value; }

inline float widen(bf16 value) { return from_bits(uint32_t(value.bits) << 16); }

inline float widen(f16 value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) return from_bits(sign | ((magnitude << 13) + 0x38000000u));
    // Subnormal: magnitude steps of 2^-24, exact in f32.
    return from_bits(sign | to_bits(float(magnitude) * from_bits(0x33800000u)));
}

inline void narrow(float value, float* out) { *out = value; }

// Round to nearest, ties to even.
inline void narrow(float value, bf16* out) {
    const uint32_t bits = to_bits(value);
    if (value != value) {
        out->bits = 0x7fc0;
    } else {
        out->bits = uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
}

// The clamps are written so that NaN passes through.
inline float at_least_smallest(float absmax) { return absmax < kSmallestAbsmax ? kSmallestAbsmax : absmax; }

inline float clamp_to_one(float value) { return value < -1.0f ? -1.0f : (value > 1.0f ? 1.0f : value); }

// NaN counts as above every midpoint.
inline uint8_t code_of(float scaled, const Quantize& q) {
    int below = 0;
    for (int i = 0; i < 15; ++i) below += !(q.midpoints[i] >= scaled);
    return q.order[below];
}

// As integers, magnitudes order like the floats they are, with Inf and then NaN on top.
template <class T>
float absmax_plain(const T* x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t magnitude = to_bits(widen(x[i])) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return from_bits(largest);
}

template <class T>
void encode_last_block(const T* x, int64_t count, float scale, const Quantize& q, uint8_t* packed) {
    for (int64_t i = 0; i < count; i += 2) {
        const uint8_t even = code_of(clamp_to_one(widen(x[i]) / scale), q);
        const uint8_t odd = code_of(i + 1 < count ? clamp_to_one(widen(x[i + 1]) / scale) : 0.0f, q);
        packed[i / 2] = uint8_t(even << 4 | odd);
    }
}

template <class Isa, class T>
void quantize_blocks(const Quantize& q, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
        const int64_t start = block * q.blocksize;
        const T* x = static_cast<const T*>(q.x) + start;
        uint8_t* packed = q.packed + start / 2;
        if (q.n - start >= q.blocksize) {
            const float absmax = Isa::absmax(x, q.blocksize);
            q.scales[block] = absmax;
            Isa::encode(x, q.blocksize, 1.0f / at_least_smallest(absmax), q, packed);
        } else {
            const float scale = at_least_smallest(absmax_plain(x, q.n - start));
            q.scales[block] = scale;
            encode_last_block(x, q.n - start, scale, q, packed);
        }
    }
}

inline float scale_of(const Dequantize& d, int64_t block) {
    if (d.scales != nullptr) return d.scales[block];
    const float scaled = d.nested_codebook[d.scale_codes[block]] * d.nested_scales[block / d.nested_blocksize];
    return scaled + d.nested_offset;
}

template <class T>
void scale_table_plain(const float* codebook, float scale, T* table) {
    for (int i = 0; i < 16; ++i) narrow(codebook[i] * scale, &table[i]);
}

template <class T>
void expand_plain(const uint8_t* packed, int64_t count, const T* table, T* out) {
    for (int64_t i = 0; i + 1 < count; i += 2) {
        const uint8_t pair = packed[i / 2];
        out[i] = table[pair >> 4];
        out[i + 1] = table[pair & 15];
    }
    if (count % 2 != 0) out[count - 1] = table[packed[count / 2] >> 4];
}

// A block has one scale, so its sixteen possible values are computed once and then only looked up.
template <class Isa, class T>
void dequantize_blocks(const Dequantize& d, int64_t first, int64_t last) {
    alignas(64) T table[16];
    for (int64_t block = first; block < last; ++block) {
        const int64_t start = block * d.blocksize;
        const int64_t rest = d.n - start;
        const int64_t count = rest < d.blocksize ? rest : d.blocksize;
        const int64_t vectored = count - count % 32;
        const float scale = scale_of(d, block);
        Isa::scale_table(d.codebook, scale, table);
        T* out = static_cast<T*>(d.out) + start;
        const uint8_t* packed = d.packed + start / 2;
        Isa::expand(packed, vectored, table, out, d.stream);
        expand_plain(packed + vectored / 2, count - vectored, table, out + vectored);
    }
    if (d.stream) Isa::finish_stream();
}

template <class Isa>
Kernels kernels_of() {
    return {quantize_blocks<Isa, float>, quantize_blocks<Isa, bf16>, quantize_blocks<Isa, f16>,
            dequantize_blocks<Isa, float>, dequantize_blocks<Isa, bf16>};
}

}  // namespace
}  // namespace lorasmith
