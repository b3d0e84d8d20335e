// Plain C++ for any processor: eight f32 in an array, in loops that a compiler can vectorize.
#include <cmath>

#include "blockwise_body.h"
#include "norm_gate_body.h"

namespace lorasmith {
namespace {

struct Portable {
    struct Vec {
        float of[kWidth];
    };

    template <class Value>
    static Vec each(const Value& value) {
        Vec out;
        for (int i = 0; i < kWidth; ++i) out.of[i] = value(i);
        return out;
    }

    static Vec set(float value) {
        return each([&](int) { return value; });
    }
    static Vec add(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.of[i] + b.of[i]; });
    }
    static Vec sub(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.of[i] - b.of[i]; });
    }
    static Vec mul(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.of[i] * b.of[i]; });
    }
    static Vec div(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.of[i] / b.of[i]; });
    }
    static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
        return each([&](int i) { return a.of[i] * b.of[i] + c.of[i]; });
    }
    // the second where one is NaN
    static Vec min(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.of[i] < b.of[i] ? a.of[i] : b.of[i]; });
    }
    static Vec max(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.of[i] > b.of[i] ? a.of[i] : b.of[i]; });
    }
    static Vec nearest(const Vec& a) {
        return each([&](int i) { return std::nearbyint(a.of[i]); });
    }
    static float root(float a) { return std::sqrt(a); }

    static Vec times_power_of_two(const Vec& a, const Vec& n) {
        // a NaN has no integer
        return each([&](int i) {
            return n.of[i] != n.of[i] ? n.of[i] : a.of[i] * from_bits(uint32_t(int32_t(n.of[i]) + 127) << 23);
        });
    }

    static float sum(const Vec& a) {
        return ((a.of[0] + a.of[4]) + (a.of[2] + a.of[6])) + ((a.of[1] + a.of[5]) + (a.of[3] + a.of[7]));
    }

    static Vec round_bf16(const Vec& a) {
        return each([&](int i) {
            bf16 narrowed;
            narrow(a.of[i], &narrowed);
            return widen(narrowed);
        });
    }

    template <class T>
    static Vec load(const T* x) {
        return each([&](int i) { return widen(x[i]); });
    }
    template <class T>
    static void store(T* x, const Vec& a) {
        for (int i = 0; i < kWidth; ++i) narrow(a.of[i], x + i);
    }
};

}  // namespace

NormGateKernels portable_norm_gate() { return norm_gate_kernels<Portable>(); }

}  // namespace lorasmith
