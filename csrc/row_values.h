// A row of f32 or bf16 values, eight at a time: reading and writing with a short end, sums, the exponential. An
// instruction set gives Set::Vec and what it can do (lanes.h).
//
// In an unnamed namespace, as blockwise_body.h says why.
#pragma once

#include <cstring>
#include <initializer_list>

#include "blockwise.h"
#include "lanes.h"

namespace lorasmith {
namespace {

// Values i <= index < min(i + 8, count) of a row; missing ones are zeros, and are not written.
template <class Set, class T>
typename Set::Vec load(const T* row, int64_t i, int64_t count) {
    if (i + kLanes <= count) return Set::load(row + i);
    T part[kLanes] = {};
    std::memcpy(part, row + i, size_t(count - i) * sizeof(T));
    return Set::load(part);
}

template <class Set, class T>
void store(T* row, int64_t i, int64_t count, typename Set::Vec value) {
    if (i + kLanes <= count) {
        Set::store(row + i, value);
        return;
    }
    T part[kLanes];
    Set::store(part, value);
    std::memcpy(row + i, part, size_t(count - i) * sizeof(T));
}

// e^x by Cephes' polynomial on [-ln2 / 2, ln2 / 2]. The bounds keep 2^n a normal number; NaN passes through them.
template <class Set>
typename Set::Vec exponential(typename Set::Vec x) {
    using Vec = typename Set::Vec;
    x = Set::min(Set::set(87.0f), Set::max(Set::set(-87.0f), x));
    const Vec n = Set::nearest(Set::mul(x, Set::set(1.44269504088896341f)));
    Vec r = Set::fma(n, Set::set(-0.693359375f), x);
    r = Set::fma(n, Set::set(2.12194440e-4f), r);
    Vec p = Set::set(1.9875691500e-4f);
    for (const float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f}) {
        p = Set::fma(p, r, Set::set(factor));
    }
    p = Set::add(Set::fma(p, Set::mul(r, r), r), Set::set(1.0f));
    return Set::times_power_of_two(p, n);
}

// Cephes' odd polynomial below 0.625, where 1 - 2 / (e^2u + 1) would lose what is small.
template <class Set>
typename Set::Vec hyperbolic_tangent(typename Set::Vec u) {
    using Vec = typename Set::Vec;
    const Vec one = Set::set(1.0f), square = Set::mul(u, u);
    const Vec power = exponential<Set>(Set::add(u, u));
    const Vec large = Set::sub(one, Set::div(Set::set(2.0f), Set::add(power, one)));
    Vec p = Set::set(-5.70498872745e-3f);
    for (const float factor : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f}) {
        p = Set::fma(p, square, Set::set(factor));
    }
    const Vec small = Set::fma(Set::mul(p, square), u, u);
    return Set::where_less(square, Set::set(0.625f * 0.625f), small, large);
}

// Sums in four registers, so that they do not wait for each other.
template <class Set, class Term>
float sum_of(int64_t columns, const Term& term) {
    typename Set::Vec sums[4] = {Set::set(0.0f), Set::set(0.0f), Set::set(0.0f), Set::set(0.0f)};
    int64_t i = 0;
    for (; i + 4 * kLanes <= columns; i += 4 * kLanes) {
        for (int part = 0; part < 4; ++part) sums[part] = term(i + part * kLanes, sums[part]);
    }
    for (; i < columns; i += kLanes) sums[0] = term(i, sums[0]);
    return Set::sum(Set::add(Set::add(sums[0], sums[1]), Set::add(sums[2], sums[3])));
}

}  // namespace
}  // namespace lorasmith
