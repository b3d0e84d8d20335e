// Eight floats in an array, in loops that a compiler can vectorize; in an unnamed namespace, as blockwise_body.h says
// why.
#pragma once

#include <cmath>

#include "blockwise_body.h"
#include "lanes.h"

namespace lorasmith {
namespace {

struct PortableLanes {
    struct Vec {
        float of[kLanes];
    };

    template <class Value>
    static Vec each(const Value& value) {
        Vec out;
        for (int i = 0; i < kLanes; ++i) out.of[i] = value(i);
        return out;
    }

    static Vec set(float value) {
        return each([&](int) { return value; });
    }

    template <class T>
    static Vec load(const T* x) {
        return each([&](int i) { return widen(x[i]); });
    }

    template <class T>
    static void store(T* x, const Vec& a) {
        for (int i = 0; i < kLanes; ++i) narrow(a.of[i], x + i);
    }

    static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
        return each([&](int i) { return a.of[i] * b.of[i] + c.of[i]; });
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
    // the second where one is NaN
    static Vec min(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.of[i] < b.of[i] ? a.of[i] : b.of[i]; });
    }
    static Vec max(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.of[i] > b.of[i] ? a.of[i] : b.of[i]; });
    }
    // a where x < y, else b, also where one is NaN
    static Vec where_less(const Vec& x, const Vec& y, const Vec& a, const Vec& b) {
        return each([&](int i) { return x.of[i] < y.of[i] ? a.of[i] : b.of[i]; });
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

    // in the order of AVX2's
    static float sum(const Vec& a) {
        return ((a.of[0] + a.of[4]) + (a.of[2] + a.of[6])) + ((a.of[1] + a.of[5]) + (a.of[3] + a.of[7]));
    }
};

}  // namespace
}  // namespace lorasmith
