// The loops that every instruction set shares; see blockwise_body.h for why all of it is in an unnamed namespace.
//
// Isa supplies eight floats at a time, as lanes.h says.
#pragma once

#include <vector>

#include "blockwise_body.h"
#include "lanes.h"
#include "low_rank.h"

namespace lorasmith {
namespace {

constexpr int kOuterRows = 6;

// A rows of x with B rows of a, so that every loaded value is used more than once.
template <class Isa, class T, int A, int B>
void project_tile(const Project& p, int64_t n, int64_t r) {
    const T* x = static_cast<const T*>(p.x) + n * p.features;
    const float* a = p.a + r * p.features;
    typename Isa::Vec sums[A][B];
    for (auto& row : sums) {
        for (auto& sum : row) sum = Isa::set(0.0f);
    }
    int64_t f = 0;
    for (; f + kLanes <= p.features; f += kLanes) {
        typename Isa::Vec values[A];
        for (int i = 0; i < A; ++i) values[i] = Isa::load(x + i * p.features + f);
        for (int j = 0; j < B; ++j) {
            const auto factor = Isa::load(a + j * p.features + f);
            for (int i = 0; i < A; ++i) sums[i][j] = Isa::fma(values[i], factor, sums[i][j]);
        }
    }
    for (int i = 0; i < A; ++i) {
        for (int j = 0; j < B; ++j) {
            float sum = Isa::sum(sums[i][j]);
            for (int64_t rest = f; rest < p.features; ++rest) {
                sum += widen(x[i * p.features + rest]) * a[j * p.features + rest];
            }
            p.h[(n + i) * p.rank + r + j] = p.scale * sum;
        }
    }
}

template <class Isa, class T>
void project(const Project& p, int64_t first, int64_t last) {
    int64_t n = first;
    for (; n + 4 <= last; n += 4) {
        int64_t r = 0;
        for (; r + 2 <= p.rank; r += 2) project_tile<Isa, T, 4, 2>(p, n, r);
        for (; r < p.rank; ++r) project_tile<Isa, T, 4, 1>(p, n, r);
    }
    for (; n < last; ++n) {
        int64_t r = 0;
        for (; r + 4 <= p.rank; r += 4) project_tile<Isa, T, 1, 4>(p, n, r);
        for (; r < p.rank; ++r) project_tile<Isa, T, 1, 1>(p, n, r);
    }
}

// A rows of y, V vectors wide.
template <class Isa, class T, class O, int A, int V>
void add_tile(const AddUpdate& u, int64_t n, int64_t f) {
    const T* y = static_cast<const T*>(u.y) + n * u.features + f;
    O* out = static_cast<O*>(u.out) + n * u.features + f;
    typename Isa::Vec sums[A][V];
    for (int i = 0; i < A; ++i) {
        for (int v = 0; v < V; ++v) sums[i][v] = Isa::load(y + i * u.features + v * kLanes);
    }
    for (int64_t r = 0; r < u.rank; ++r) {
        typename Isa::Vec factors[V];
        for (int v = 0; v < V; ++v) factors[v] = Isa::load(u.b + r * u.features + f + v * kLanes);
        for (int i = 0; i < A; ++i) {
            const auto weight = Isa::set(u.h[(n + i) * u.rank + r]);
            for (int v = 0; v < V; ++v) sums[i][v] = Isa::fma(weight, factors[v], sums[i][v]);
        }
    }
    for (int i = 0; i < A; ++i) {
        for (int v = 0; v < V; ++v) Isa::store(out + i * u.features + v * kLanes, sums[i][v]);
    }
}

template <class Isa, class T, class O, int A>
void add_rows(const AddUpdate& u, int64_t n) {
    int64_t f = 0;
    for (; f + 2 * kLanes <= u.features; f += 2 * kLanes) add_tile<Isa, T, O, A, 2>(u, n, f);
    for (; f + kLanes <= u.features; f += kLanes) add_tile<Isa, T, O, A, 1>(u, n, f);
    for (; f < u.features; ++f) {
        for (int64_t i = n; i < n + A; ++i) {
            float sum = widen(static_cast<const T*>(u.y)[i * u.features + f]);
            for (int64_t r = 0; r < u.rank; ++r) sum += u.h[i * u.rank + r] * u.b[r * u.features + f];
            narrow(sum, static_cast<O*>(u.out) + i * u.features + f);
        }
    }
}

template <class Isa, class T, class O>
void add_update(const AddUpdate& u, int64_t first, int64_t last) {
    int64_t n = first;
    for (; n + 4 <= last; n += 4) add_rows<Isa, T, O, 4>(u, n);
    for (; n < last; ++n) add_rows<Isa, T, O, 1>(u, n);
}

// Adds N rows of x to the sums, which lie [f / kLanes][r]: rows of x a power of two apart share their place in the
// first cache, and rows of sums would as well.
template <class Isa, class T, int N>
void outer_rows(const Outer& o, int64_t n, int64_t first, int64_t vectors, typename Isa::Vec* sums) {
    const T* x = static_cast<const T*>(o.x) + n * o.features + first;
    const float* h = o.h + n * o.rank;
    for (int64_t v = 0; v < vectors; ++v) {
        typename Isa::Vec values[N];
        for (int i = 0; i < N; ++i) values[i] = Isa::load(x + i * o.features + v * kLanes);
        for (int64_t r = 0; r < o.rank; ++r) {
            auto sum = sums[v * o.rank + r];
            for (int i = 0; i < N; ++i) sum = Isa::fma(Isa::set(h[i * o.rank + r]), values[i], sum);
            sums[v * o.rank + r] = sum;
        }
    }
}

template <class Isa, class T>
void outer(const Outer& o, int64_t first, int64_t last) {
    const int64_t vectors = (last - first) / kLanes;
    std::vector<typename Isa::Vec> sums(size_t(vectors * o.rank), Isa::set(0.0f));
    int64_t n = 0;
    for (; n + kOuterRows <= o.rows; n += kOuterRows) {
        outer_rows<Isa, T, kOuterRows>(o, n, first, vectors, sums.data());
    }
    for (; n < o.rows; ++n) outer_rows<Isa, T, 1>(o, n, first, vectors, sums.data());
    for (int64_t r = 0; r < o.rank; ++r) {
        float* out = o.out + r * o.features;
        for (int64_t v = 0; v < vectors; ++v) Isa::store(out + first + v * kLanes, sums[size_t(v * o.rank + r)]);
        for (int64_t f = first + vectors * kLanes; f < last; ++f) {
            out[f] = 0.0f;
            for (n = 0; n < o.rows; ++n)
                out[f] += o.h[n * o.rank + r] * widen(static_cast<const T*>(o.x)[n * o.features + f]);
        }
    }
}

template <class Isa>
LowRankKernels low_rank_kernels() {
    return {project<Isa, float>,
            project<Isa, bf16>,
            add_update<Isa, float, float>,
            add_update<Isa, float, bf16>,
            add_update<Isa, bf16, bf16>,
            outer<Isa, float>,
            outer<Isa, bf16>};
}

}  // namespace
}  // namespace lorasmith
