// The thin products of a low-rank update, which general matrix products do at a quarter of their rate or less.
//
// N rows, F features, R rank, all row-major and contiguous. Values of x and y are f32 or bf16, factors and sums f32.
#pragma once

#include <cstdint>

namespace lorasmith {

// h [N, R] = scale * x [N, F] a [R, F]^T.
struct Project {
    const void* x;
    const float* a;
    float* h;
    int64_t features, rank;
    float scale;
};

// out [N, F] = y [N, F] + h [N, R] b [R, F]; out may be y itself.
struct AddUpdate {
    const void* y;
    const float* h;
    const float* b;
    void* out;
    int64_t features, rank;
};

// out [R, F] = h [N, R]^T x [N, F].
struct Outer {
    const void* x;
    const float* h;
    float* out;
    int64_t rows, features, rank;
};

struct LowRankKernels {
    // rows first <= n < last
    void (*project_f32)(const Project&, int64_t first, int64_t last);
    void (*project_bf16)(const Project&, int64_t first, int64_t last);
    // named by the types of y and out
    void (*add_f32_f32)(const AddUpdate&, int64_t first, int64_t last);
    void (*add_f32_bf16)(const AddUpdate&, int64_t first, int64_t last);
    void (*add_bf16_bf16)(const AddUpdate&, int64_t first, int64_t last);
    // features first <= f < last
    void (*outer_f32)(const Outer&, int64_t first, int64_t last);
    void (*outer_bf16)(const Outer&, int64_t first, int64_t last);
};

LowRankKernels portable_low_rank();
LowRankKernels avx2_low_rank();

}  // namespace lorasmith
