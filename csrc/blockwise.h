// Blockwise 4-bit codes on a CPU: what the kernels take, and the table of them that each instruction set fills.
//
// Layout: n elements, row-major and flat, in blocks of `blocksize`; byte i of `packed` holds element 2i in its high
// nibble and 2i + 1 in its low one; an odd n is padded with a zero. The arithmetic is that of
// src/lorasmith/ops/blockwise/reference.py, bit for bit: f32, one rounding an operation, nothing contracted.
#pragma once

#include <cstdint>

namespace lorasmith {

struct bf16 {
    uint16_t bits;
};

struct f16 {
    uint16_t bits;
};

// Quantizing: code = order[number of midpoints below the scaled element].
// A whole block is scaled by 1 / max(absmax, 1e-38); a partial last one is divided by its clamped absmax, which is
// also what it stores.
struct Quantize {
    const void* x;           // [n]
    const float* midpoints;  // [15], ascending
    const uint8_t* order;    // [16], code of each level in ascending order
    uint8_t* packed;         // [ceil(n / 2)]
    float* scales;           // [ceil(n / blocksize)]
    int64_t n;
    int64_t blocksize;  // a multiple of 32
};

// Quantizing to 8 bits: the scaled element x * (1 / absmax) is rounded to one of 65,536 points of [-1, 1], and the
// point to the nearest level. A block of zeros has codes 0.
struct Quantize8 {
    const float* x;          // [n]
    const float* midpoints;  // [255], ascending
    const uint8_t* order;    // [256], code of each level in ascending order
    uint8_t* codes;          // [n]
    float* scales;           // [ceil(n / blocksize)]
    int64_t n;
    int64_t blocksize;
};

// Dequantizing: out = codebook[code] * scale, rounded once to the type of out.
// scale = scales[block], or, with nested scales,
// nested_codebook[scale_codes[block]] * nested_scales[block / nested_blocksize] + nested_offset.
struct Dequantize {
    const uint8_t* packed;         // [ceil(n / 2)]
    const float* codebook;         // [16]
    const float* scales;           // [ceil(n / blocksize)], or null with nested scales
    const uint8_t* scale_codes;    // [ceil(n / blocksize)], or null
    const float* nested_scales;    // [ceil(blocks / nested_blocksize)]
    const float* nested_codebook;  // [256]
    float nested_offset;
    int64_t nested_blocksize;
    void* out;  // [n]
    int64_t n;
    int64_t blocksize;  // a multiple of 32
    bool stream;        // write past the caches; only with out on a line of 64 bytes
};

// Each works on the blocks first <= block < last.
using QuantizeBlocks = void (*)(const Quantize&, int64_t first, int64_t last);
using DequantizeBlocks = void (*)(const Dequantize&, int64_t first, int64_t last);

struct Kernels {
    QuantizeBlocks quantize_f32;
    QuantizeBlocks quantize_bf16;
    QuantizeBlocks quantize_f16;
    DequantizeBlocks dequantize_f32;
    DequantizeBlocks dequantize_bf16;
};

// One version for every processor: these are the scales of a tensor, a 64th of its elements.
void quantize_8bit_blocks(const Quantize8&, int64_t first, int64_t last);

Kernels portable_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();

}  // namespace lorasmith
