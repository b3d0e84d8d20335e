// Products of a few rows with a dense matrix in bf16: y = x W^T, W read once and widened as it is multiplied.
//
// Row-major and contiguous. Arithmetic: f32, sums in another order than the reference's.
#pragma once

#include "blockwise.h"

namespace lorasmith {

struct Narrow {
    const float* x;      // [rows, in_features]
    const bf16* weight;  // [out_features, in_features]
    float* y;            // [rows, out_features]
    int64_t rows, out_features, in_features;
};

// The columns first <= o < last of y.
void multiply_narrow_portable(const Narrow&, int64_t first, int64_t last);
void multiply_narrow_avx2(const Narrow&, int64_t first, int64_t last);

}  // namespace lorasmith
