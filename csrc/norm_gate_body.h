// The rows of norms and gated activations, eight values at a time; an instruction set gives Set::Vec and what it can
// do.
//
// In an unnamed namespace: the file is compiled once for each instruction set, with flags of its own.
#pragma once

#include "norm_gate.h"
#include "row_values.h"

namespace lorasmith {
namespace {

template <class Set>
typename Set::Vec rounded(typename Set::Vec value, const float*) {
    return value;
}

template <class Set>
typename Set::Vec rounded(typename Set::Vec value, const bf16*) {
    return Set::round_bf16(value);
}

template <class Set>
typename Set::Vec sigmoid(typename Set::Vec z) {
    const auto one = Set::set(1.0f);
    return Set::div(one, Set::add(one, exponential<Set>(Set::sub(Set::set(0.0f), z))));
}

constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;
constexpr float kCubic = 0.044715f;

// z of gate * sigmoid(z), and its derivative.
template <class Set, Gate G>
typename Set::Vec argument(typename Set::Vec x) {
    if (G == Gate::kSilu) return x;
    const auto inner = Set::fma(Set::mul(x, x), Set::set(kTwoRootTwoOverPi * kCubic), Set::set(kTwoRootTwoOverPi));
    return Set::mul(x, inner);
}

template <class Set, Gate G>
typename Set::Vec slope(typename Set::Vec x) {
    if (G == Gate::kSilu) return Set::set(1.0f);
    return Set::fma(Set::mul(x, x), Set::set(3 * kTwoRootTwoOverPi * kCubic), Set::set(kTwoRootTwoOverPi));
}

template <class Set, Gate G, class T>
void gated_rows_of(const Gated& g, int64_t first, int64_t last) {
    const T* const kind = nullptr;
    for (int64_t row = first; row < last; ++row) {
        const T* const gate = static_cast<const T*>(g.gate) + row * g.gate_stride;
        const T* const up = static_cast<const T*>(g.up) + row * g.up_stride;
        T* const out = static_cast<T*>(g.out) + row * g.columns;
        for (int64_t i = 0; i < g.columns; i += kLanes) {
            const auto x = load<Set>(gate, i, g.columns);
            const auto act = rounded<Set>(Set::mul(x, sigmoid<Set>(argument<Set, G>(x))), kind);
            store<Set>(out, i, g.columns, Set::mul(act, load<Set>(up, i, g.columns)));
        }
    }
}

template <class Set, Gate G, class T>
void gated_backward_rows_of(const Gated& g, int64_t first, int64_t last) {
    const T* const kind = nullptr;
    for (int64_t row = first; row < last; ++row) {
        const T* const gate = static_cast<const T*>(g.gate) + row * g.gate_stride;
        const T* const up = static_cast<const T*>(g.up) + row * g.up_stride;
        const T* const grad = static_cast<const T*>(g.grad) + row * g.columns;
        T* const grad_gate = static_cast<T*>(g.grad_gate) + row * g.grad_gate_stride;
        T* const grad_up = static_cast<T*>(g.grad_up) + row * g.grad_up_stride;
        for (int64_t i = 0; i < g.columns; i += kLanes) {
            const auto x = load<Set>(gate, i, g.columns);
            const auto s = sigmoid<Set>(argument<Set, G>(x));
            const auto act = Set::mul(x, s);
            const auto d = load<Set>(grad, i, g.columns);
            store<Set>(grad_up, i, g.columns, Set::mul(d, rounded<Set>(act, kind)));
            // (x s(z))' = s + x s (1 - s) z'
            const auto fall = Set::mul(Set::sub(Set::set(1.0f), s), slope<Set, G>(x));
            const auto derivative = Set::fma(act, fall, s);
            const auto of_act = rounded<Set>(Set::mul(d, load<Set>(up, i, g.columns)), kind);
            store<Set>(grad_gate, i, g.columns, Set::mul(of_act, derivative));
        }
    }
}

template <class Set, class T>
void gated_rows(const Gated& g, int64_t first, int64_t last) {
    (g.function == Gate::kSilu ? gated_rows_of<Set, Gate::kSilu, T> : gated_rows_of<Set, Gate::kGeluTanh, T>)(g, first,
                                                                                                              last);
}

template <class Set, class T>
void gated_backward_rows(const Gated& g, int64_t first, int64_t last) {
    (g.function == Gate::kSilu ? gated_backward_rows_of<Set, Gate::kSilu, T>
                               : gated_backward_rows_of<Set, Gate::kGeluTanh, T>)(g, first, last);
}

template <class Set, class T>
void norm_rows(const Norm& n, int64_t first, int64_t last) {
    using Vec = typename Set::Vec;
    const int64_t columns = n.columns;
    const T* const weight = static_cast<const T*>(n.weight);
    const Vec offset = Set::set(n.offset);
    for (int64_t row = first; row < last; ++row) {
        const T* const x = static_cast<const T*>(n.x) + row * columns;
        T* const y = static_cast<T*>(n.out) + row * columns;
        const float squares = sum_of<Set>(columns, [&](int64_t i, Vec sum) {
            const Vec value = load<Set>(x, i, columns);
            return Set::fma(value, value, sum);
        });
        const float r = 1.0f / Set::root(squares / float(columns) + n.eps);
        n.rms[row] = r;
        for (int64_t i = 0; i < columns; i += kLanes) {
            Vec value = Set::mul(load<Set>(x, i, columns), Set::set(r));
            if (n.rounds_first) value = rounded<Set>(value, x);
            store<Set>(y, i, columns, Set::mul(value, Set::add(load<Set>(weight, i, columns), offset)));
        }
    }
}

template <class Set, class T>
void norm_backward_rows(const Norm& n, int64_t first, int64_t last) {
    using Vec = typename Set::Vec;
    const int64_t columns = n.columns;
    const T* const weight = static_cast<const T*>(n.weight);
    const Vec offset = Set::set(n.offset);
    for (int64_t row = first; row < last; ++row) {
        const T* const x = static_cast<const T*>(n.x) + row * columns;
        const T* const grad = static_cast<const T*>(n.grad) + row * columns;
        T* const grad_x = static_cast<T*>(n.out) + row * columns;
        const Vec r = Set::set(n.rms[row]);
        const auto of_normed = [&](int64_t i) {
            const Vec g = Set::mul(load<Set>(grad, i, columns), Set::add(load<Set>(weight, i, columns), offset));
            return n.rounds_first ? rounded<Set>(g, x) : g;
        };
        const float products = sum_of<Set>(
            columns, [&](int64_t i, Vec sum) { return Set::fma(of_normed(i), load<Set>(x, i, columns), sum); });
        // n * mean(g * n) = x * (r^2 * mean(g * x))
        const Vec share = Set::set(n.rms[row] * n.rms[row] * products / float(columns));
        for (int64_t i = 0; i < columns; i += kLanes) {
            const Vec value = load<Set>(x, i, columns);
            if (n.grad_weight != nullptr) {
                Vec normed = Set::mul(value, r);
                if (n.rounds_first) normed = rounded<Set>(normed, x);
                const Vec sum = load<Set>(n.grad_weight, i, columns);
                store<Set>(n.grad_weight, i, columns, Set::fma(load<Set>(grad, i, columns), normed, sum));
            }
            store<Set>(grad_x, i, columns, Set::mul(r, Set::sub(of_normed(i), Set::mul(value, share))));
        }
    }
}

template <class Set>
NormGateKernels norm_gate_kernels() {
    return {norm_rows<Set, float>,           norm_rows<Set, bf16>,          norm_backward_rows<Set, float>,
            norm_backward_rows<Set, bf16>,   gated_rows<Set, float>,        gated_rows<Set, bf16>,
            gated_backward_rows<Set, float>, gated_backward_rows<Set, bf16>};
}

}  // namespace
}  // namespace lorasmith
