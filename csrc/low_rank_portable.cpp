// Plain C++ for any processor.
#include "low_rank_body.h"

namespace lorasmith {
namespace {

struct Portable {
    struct Vec {
        float of[kLanes];
    };

    template <class Of>
    static Vec each(const Of& of) {
        Vec made;
        for (int64_t i = 0; i < kLanes; ++i) made.of[i] = of(i);
        return made;
    }

    static Vec all(float value) {
        return each([&](int64_t) { return value; });
    }

    template <class T>
    static Vec load(const T* x) {
        return each([&](int64_t i) { return widen(x[i]); });
    }

    template <class T>
    static void store(T* out, const Vec& values) {
        for (int64_t i = 0; i < kLanes; ++i) narrow(values.of[i], out + i);
    }

    static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
        return each([&](int64_t i) { return a.of[i] * b.of[i] + c.of[i]; });
    }

    static float sum(const Vec& values) {
        float total = 0.0f;
        for (float value : values.of) total += value;
        return total;
    }
};

}  // namespace

LowRankKernels portable_low_rank() { return low_rank_kernels<Portable>(); }

}  // namespace lorasmith
