// The loops that every instruction set shares; see blockwise_body.h for why all of it is in an unnamed namespace.
//
// Isa supplies eight floats at a time, as lanes.h says.
#pragma once

#include "blockwise_body.h"
#include "lanes.h"
#include "narrow.h"
#include "tiles.h"

namespace lorasmith {
namespace {

// R rows of x with C rows of W.
template <class Isa, int R, int C>
void multiply_tile(const Narrow& p, int64_t row, int64_t column) {
    const float* x = p.x + row * p.in_features;
    const bf16* weight = p.weight + column * p.in_features;
    typename Isa::Vec sums[R][C];
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) sums[r][c] = Isa::set(0.0f);
    }
    int64_t i = 0;
    for (; i + kLanes <= p.in_features; i += kLanes) {
        typename Isa::Vec w[C];
        for (int c = 0; c < C; ++c) w[c] = Isa::load(weight + c * p.in_features + i);
        for (int r = 0; r < R; ++r) {
            const auto value = Isa::load(x + r * p.in_features + i);
            for (int c = 0; c < C; ++c) sums[r][c] = Isa::fma(w[c], value, sums[r][c]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) {
            float sum = Isa::sum(sums[r][c]);
            for (int64_t rest = i; rest < p.in_features; ++rest) {
                sum += x[r * p.in_features + rest] * widen(weight[c * p.in_features + rest]);
            }
            p.y[(row + r) * p.out_features + column + c] = sum;
        }
    }
}

// One row of x with one row of W: W is one stream then, which the processor fetches ahead better than a tile's four.
template <class Isa>
void multiply_row(const Narrow& p, int64_t column) {
    constexpr int kSums = 4;
    const bf16* weight = p.weight + column * p.in_features;
    typename Isa::Vec sums[kSums];
    for (auto& sum : sums) sum = Isa::set(0.0f);
    int64_t i = 0;
    for (; i + kSums * kLanes <= p.in_features; i += kSums * kLanes) {
        for (int s = 0; s < kSums; ++s) {
            sums[s] = Isa::fma(Isa::load(weight + i + s * kLanes), Isa::load(p.x + i + s * kLanes), sums[s]);
        }
    }
    float total = (Isa::sum(sums[0]) + Isa::sum(sums[1])) + (Isa::sum(sums[2]) + Isa::sum(sums[3]));
    for (; i < p.in_features; ++i) total += p.x[i] * widen(weight[i]);
    p.y[column] = total;
}

template <class Isa>
void multiply_narrow(const Narrow& p, int64_t first, int64_t last) {
    if (p.rows == 1) {
        for (int64_t column = first; column < last; ++column) multiply_row<Isa>(p, column);
        return;
    }
    for_tiles(p.rows, first, last, [&](auto r, auto c, int64_t row, int64_t column) {
        multiply_tile<Isa, r.value, c.value>(p, row, column);
    });
}

}  // namespace
}  // namespace lorasmith
