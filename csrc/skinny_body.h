// The loops that every instruction set shares; see blockwise_body.h for why all of it is in an unnamed namespace.
//
// Isa supplies:
//   Table                                         the sixteen levels in the form that add reads
//   Sums<R>                                       partial sums of R rows
//   void add(const Table&, const uint8_t* packed, int64_t count, const float* x, int64_t stride, Sums<R>&)
//   void add_scaled(const Sums<R>&, float scale, Sums<R>& total)
//   void write(const Sums<R>&, float* y, int64_t stride)
#pragma once

#include <vector>

#include "blockwise_body.h"
#include "skinny.h"

namespace lorasmith {
namespace {

// R rows of x with one row of W.
template <class Isa, int R>
void skinny_row(const Skinny& s, const typename Isa::Table& table, const float* scales, int64_t o, int64_t row) {
    const int64_t begin = o * s.in_features;
    const int64_t first_block = begin / s.stored.blocksize;
    typename Isa::template Sums<R> total{};
    int64_t i = 0;
    for (int64_t block = first_block; i < s.in_features; ++block) {
        const int64_t block_end = (block + 1) * s.stored.blocksize - begin;
        const int64_t end = block_end < s.in_features ? block_end : s.in_features;
        typename Isa::template Sums<R> piece{};
        Isa::template add<R>(table, s.stored.packed + (begin + i) / 2, end - i, s.x + row * s.in_features + i,
                             s.in_features, piece);
        Isa::template add_scaled<R>(piece, scales[block - first_block], total);
        i = end;
    }
    Isa::template write<R>(total, s.y + row * s.out_features + o, s.out_features);
}

template <class Isa>
void skinny_columns(const Skinny& s, int64_t first, int64_t last) {
    const typename Isa::Table table(s.stored.codebook);
    std::vector<float> scales(size_t(s.in_features / s.stored.blocksize + 2));
    for (int64_t o = first; o < last; ++o) {
        const int64_t begin = o * s.in_features;
        const int64_t first_block = begin / s.stored.blocksize;
        const int64_t last_block = (begin + s.in_features - 1) / s.stored.blocksize;
        for (int64_t block = first_block; block <= last_block; ++block) {
            scales[size_t(block - first_block)] = scale_of(s.stored, block);
        }
        // the codes of one row of W stay in the first cache for all rows of x
        int64_t row = 0;
        for (; row + 4 <= s.rows; row += 4) skinny_row<Isa, 4>(s, table, scales.data(), o, row);
        for (; row + 2 <= s.rows; row += 2) skinny_row<Isa, 2>(s, table, scales.data(), o, row);
        for (; row < s.rows; ++row) skinny_row<Isa, 1>(s, table, scales.data(), o, row);
    }
}

}  // namespace
}  // namespace lorasmith
