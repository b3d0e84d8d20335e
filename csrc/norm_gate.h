// Root mean square norms and gated activations on a CPU: what the kernels take, and the table of them.
//
// Values are f32 or bf16, arithmetic f32. Rounded to the values' type is what transformers' modules round there, so
// that fused and unfused runs agree; the specifications are ops/rms_norm/reference.py and
// ops/gated_activation/reference.py. They agree up to the order of f32 sums and an exponential that is good to 2 units
// in the last place.
#pragma once

#include <cstdint>

namespace lorasmith {

// Forward: y = w * x * r of each row, r = 1 / sqrt(mean(x^2) + eps).
// Backward: g = grad * w, grad_x = r * (g - n * mean(g * n)), grad_weight = sum over rows of grad * n, with n = x * r.
struct Norm {
    const void* x;       // [rows, columns]
    const void* weight;  // [columns]
    float* rms;          // [rows], r: written by the forward, read by the backward
    const void* grad;    // [rows, columns], of y; backward only
    void* out;           // [rows, columns]: y, or grad_x
    float* grad_weight;  // [columns], added to; or null
    int64_t columns;
    float eps;
    float offset;       // w = weight + offset
    bool rounds_first;  // x * r is rounded to its type before the product with w
};

// A gate's function is gate * sigmoid(z): silu with z = gate; gelu's tanh form with z = its polynomial times 2.
enum class Gate { kSilu, kGeluTanh };

// Forward: out = act(gate) * up. Backward: the gradients of both.
// Rows may lie further apart than they are long, as the halves of one tensor do; out and grad are whole.
struct Gated {
    const void* gate;  // [rows, columns]
    const void* up;    // [rows, columns]
    const void* grad;  // [rows, columns], of out; backward only
    void* out;         // [rows, columns]; forward only
    void* grad_gate;   // [rows, columns]; backward only
    void* grad_up;     // [rows, columns]; backward only
    int64_t columns;
    int64_t gate_stride, up_stride, grad_gate_stride, grad_up_stride;  // elements from row to row
    Gate function;
};

// Each works on the rows first <= row < last.
using NormRows = void (*)(const Norm&, int64_t first, int64_t last);
using GatedRows = void (*)(const Gated&, int64_t first, int64_t last);

struct NormGateKernels {
    NormRows norm_f32, norm_bf16;
    NormRows norm_backward_f32, norm_backward_bf16;
    GatedRows gated_f32, gated_bf16;
    GatedRows gated_backward_f32, gated_backward_bf16;
};

NormGateKernels portable_norm_gate();
NormGateKernels avx2_norm_gate();

}  // namespace lorasmith
