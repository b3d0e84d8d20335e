// Plain C++ for any processor: a row of x with a row of W, block by block.
#include <vector>

#include "blockwise_body.h"
#include "skinny.h"

namespace lorasmith {
namespace {

// R rows of x with one row of W.
template <int R>
void multiply_rows(const Skinny& s, const float* scales, int64_t o, int64_t row) {
    const int64_t begin = o * s.in_features;
    const int64_t first_block = begin / s.stored.blocksize;
    const float* level = s.stored.codebook;
    const float* x = s.x + row * s.in_features;
    float total[R] = {};
    int64_t i = 0;
    for (int64_t block = first_block; i < s.in_features; ++block) {
        const int64_t block_end = (block + 1) * s.stored.blocksize - begin;
        const int64_t end = block_end < s.in_features ? block_end : s.in_features;
        float piece[R] = {};
        for (; i < end; i += 2) {
            const uint8_t pair = s.stored.packed[(begin + i) / 2];
            const float even = level[pair >> 4], odd = level[pair & 15];
            for (int r = 0; r < R; ++r)
                piece[r] += even * x[r * s.in_features + i] + odd * x[r * s.in_features + i + 1];
        }
        for (int r = 0; r < R; ++r) total[r] += piece[r] * scales[block - first_block];
    }
    for (int r = 0; r < R; ++r) s.y[(row + r) * s.out_features + o] = total[r];
}

void multiply(const Skinny& s, int64_t first, int64_t last) {
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
        for (; row + 4 <= s.rows; row += 4) multiply_rows<4>(s, scales.data(), o, row);
        for (; row + 2 <= s.rows; row += 2) multiply_rows<2>(s, scales.data(), o, row);
        for (; row < s.rows; ++row) multiply_rows<1>(s, scales.data(), o, row);
    }
}

template <class T>
void arrange(const Skinny& s, const void* x, float* arranged) {
    for (int64_t i = 0; i < s.rows * s.in_features; ++i) arranged[i] = widen(static_cast<const T*>(x)[i]);
}

}  // namespace

SkinnyKernels portable_skinny() { return {arrange<float>, arrange<bf16>, multiply}; }

}  // namespace lorasmith
