// Cross-entropy of rows of logits on a CPU: what the kernels take, and the table of them.
//
// z = cap(scale * x), cap(u) = softcap * tanh(u / softcap), lse = log(sum(exp(z))), and with s = smoothing, c = z_loss,
// w = the row's weight: loss = w ((1 - s) (lse - z_label) + s (lse - mean(z)) + c lse^2).
// The specification is ops/token_loss/reference.py; they agree up to the order of f32 sums and the exponential.
#pragma once

#include <cstdint>

namespace lorasmith {

struct TokenLoss {
    void* logits;           // [rows, columns] x; replaced by the gradient to it where that is asked for
    const int64_t* labels;  // [rows], each a column
    const float* weights;   // [rows], or null
    float* losses;          // [rows]
    int64_t columns;
    float scale;
    float softcap;  // 0: none
    float smoothing;
    float z_loss;
    bool gradient;
};

// Each works on the rows first <= row < last.
using TokenLossRows = void (*)(const TokenLoss&, int64_t first, int64_t last);

struct TokenLossKernels {
    TokenLossRows f32, bf16;
};

TokenLossKernels portable_token_loss();
TokenLossKernels avx2_token_loss();

}  // namespace lorasmith
