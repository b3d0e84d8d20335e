// AVX2: codes widened to int16, sixteen at a time, multiplied and added in pairs to int32.
//
// a is widened once for kBlockRows rows, which stay in the second cache while b passes; b is widened in registers. Both
// are cut along in_features so that what a group of columns reads stays in the first cache.
#include <immintrin.h>

#include <vector>

#include "int8.h"
#include "lanes_avx2.h"
#include "tiles.h"

namespace lorasmith {
namespace {

constexpr int64_t kBlockRows = 32;
constexpr int64_t kChunk = 1024;

// Adds count products each to y [R][C], whose rows lie y_stride apart. a and b have rows of in_features; the codes
// `ahead` bytes behind those in work are fetched.
template <int R, int C>
void add_tile(const int16_t* a, const int8_t* b, int64_t in_features, int64_t count, int64_t ahead, int32_t* y,
              int64_t y_stride) {
    __m256i sum[R][C];
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) sum[r][c] = _mm256_setzero_si256();
    }
    const auto add_16 = [&](int64_t i) {
        __m256i codes[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            codes[c] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + c * in_features + i)));
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + r * in_features + i));
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                sum[r][c] = _mm256_add_epi32(sum[r][c], _mm256_madd_epi16(values, codes[c]));
            }
        }
    };
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        for (int c = 0; c < C; ++c) {
            _mm_prefetch(reinterpret_cast<const char*>(b + c * in_features + i + ahead), _MM_HINT_T0);
        }
        for (int64_t part = 0; part < 64; part += 16) add_16(i + part);
    }
    for (; i + 16 <= count; i += 16) add_16(i);
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) {
            int32_t total = sum_of(sum[r][c]);
            for (int64_t j = i; j < count; ++j) total += int32_t(a[r * in_features + j]) * b[c * in_features + j];
            y[r * y_stride + c] += total;
        }
    }
}

void multiply_block(const Int8Product& p, const int16_t* a, int64_t row, int64_t rows, int64_t first, int64_t last) {
    for (int64_t start = first; start < last; start += kGroupColumns) {
        const int64_t end = last - start < kGroupColumns ? last : start + kGroupColumns;
        for (int64_t r = row; r < row + rows; ++r) {
            for (int64_t c = start; c < end; ++c) p.y[r * p.columns + c] = 0;
        }
        for (int64_t i = 0; i < p.in_features; i += kChunk) {
            const int64_t count = p.in_features - i < kChunk ? p.in_features - i : kChunk;
            for_tiles(rows, start, end, [&](auto tall, auto wide, int64_t r, int64_t c) {
                // the first rows to read a group fetch the next, since each chunk begins where no prefetcher looks
                const int64_t ahead = r == 0 ? kGroupColumns * p.in_features : 0;
                add_tile<tall.value, wide.value>(a + r * p.in_features + i, p.b + c * p.in_features + i, p.in_features,
                                                 count, ahead, p.y + (row + r) * p.columns + c, p.columns);
            });
        }
    }
}

}  // namespace

void multiply_int8_avx2(const Int8Product& p, int64_t first, int64_t last) {
    const int64_t most = p.rows < kBlockRows ? p.rows : kBlockRows;
    std::vector<int16_t> widened(size_t(most * p.in_features));
    for (int64_t row = 0; row < p.rows; row += kBlockRows) {
        const int64_t rows = p.rows - row < kBlockRows ? p.rows - row : kBlockRows;
        const int8_t* a = p.a + row * p.in_features;
        for (int64_t i = 0; i < rows * p.in_features; ++i) widened[size_t(i)] = a[i];
        multiply_block(p, widened.data(), row, rows, first, last);
    }
}

}  // namespace lorasmith
