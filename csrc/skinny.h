// Products of a few rows straight from blockwise 4-bit codes: y = x W^T, without the dense W.
//
// W [out_features, in_features] lies flat and row-major in blocks, as blockwise.h says; a block may run on into the
// next row. Where in_features is a multiple of 32, every piece of a row inside one block is too, and starts on a whole
// byte. Arithmetic: f32. Either levels are multiplied with x and summed piece by piece, and each sum by the scale of
// its block, or level times scale, rounded as the reference rounds it, is multiplied with x; so results differ from the
// reference's by the order of f32 roundings.
#pragma once

#include "blockwise.h"

namespace lorasmith {

constexpr int64_t kMostSkinnyRows = 16;

struct Skinny {
    Dequantize stored;  // out is not used; n = out_features * in_features
    const float* x;     // [rows, in_features], prepared by the kernel's own arrange
    float* y;           // [rows, out_features]
    int64_t rows;       // 1 to kMostSkinnyRows
    int64_t out_features;
    int64_t in_features;  // a multiple of 32
};

struct SkinnyKernels {
    // Puts x, f32 or bf16, in the order in which the product reads it; the other fields of the argument tell which that
    // is.
    void (*arrange_f32)(const Skinny&, const void* x, float* arranged);
    void (*arrange_bf16)(const Skinny&, const void* x, float* arranged);
    // Writes the columns first <= o < last of y.
    void (*multiply)(const Skinny&, int64_t first, int64_t last);
};

SkinnyKernels portable_skinny();
SkinnyKernels avx2_skinny();

}  // namespace lorasmith
