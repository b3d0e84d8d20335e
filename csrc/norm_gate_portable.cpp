// Plain C++ for any processor.
#include <cmath>

#include "lanes_portable.h"
#include "norm_gate_body.h"

namespace lorasmith {
namespace {

struct Portable : PortableLanes {
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

    static Vec round_bf16(const Vec& a) {
        return each([&](int i) {
            bf16 narrowed;
            narrow(a.of[i], &narrowed);
            return widen(narrowed);
        });
    }
};

}  // namespace

NormGateKernels portable_norm_gate() { return norm_gate_kernels<Portable>(); }

}  // namespace lorasmith
