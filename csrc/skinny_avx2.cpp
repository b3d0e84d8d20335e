// AVX2 and FMA: the four bytes of each level are looked up apart, 32 codes at a time, and put together by unpacking.
//
// Unpacking leaves the levels in another order than that of their elements, and so it is x that is put into that order
// once, instead of the levels each time. Two ways:
//   direct   up to kMostDirectRows rows: levels are multiplied with x as they come out of the look-up, 64 codes at a
//            time; in_features and blocksize are multiples of 64. The look-up bounds it, at a third of memory's rate.
//   panel    everything else: kGroupColumns rows of W are scaled and written to a panel that stays in the first cache,
//            and multiplied from there in tiles.
#include <immintrin.h>

#include <vector>

#include "blockwise_body.h"
#include "lanes_avx2.h"
#include "skinny.h"
#include "tiles.h"

namespace lorasmith {
namespace {

constexpr int64_t kMostDirectRows = 4;
// One chunk of a panel is 16 KB, and four rows of x beside it 8 KB.
constexpr int64_t kChunk = 512;
// Bytes ahead of the codes in work that are fetched: the processor's own prefetching stops at each page.
constexpr int64_t kFetchAhead = 1536;

bool direct(const Skinny& s) {
    return s.rows <= kMostDirectRows && s.in_features % 64 == 0 && s.stored.blocksize % 64 == 0;
}

struct Levels {
    explicit Levels(const float* codebook) {
        for (int byte = 0; byte < 4; ++byte) {
            alignas(16) uint8_t bytes[16];
            for (int i = 0; i < 16; ++i) bytes[i] = uint8_t(to_bits(codebook[i]) >> (8 * byte));
            of_byte[byte] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
        }
    }

    // The levels of 32 codes, a byte each: in each half of 16 codes the quarters 0, 1, 2, 3 of four.
    void look_up(__m256i codes, __m256* levels) const {
        const __m256i byte0 = _mm256_shuffle_epi8(of_byte[0], codes);
        const __m256i byte1 = _mm256_shuffle_epi8(of_byte[1], codes);
        const __m256i byte2 = _mm256_shuffle_epi8(of_byte[2], codes);
        const __m256i byte3 = _mm256_shuffle_epi8(of_byte[3], codes);
        const __m256i low0 = _mm256_unpacklo_epi8(byte0, byte1), low1 = _mm256_unpackhi_epi8(byte0, byte1);
        const __m256i high0 = _mm256_unpacklo_epi8(byte2, byte3), high1 = _mm256_unpackhi_epi8(byte2, byte3);
        levels[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0));
        levels[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0));
        levels[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1));
        levels[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1));
    }

    __m256i of_byte[4];
};

// The scales of consecutive blocks, in all lanes. Nested ones are resolved where they are used: a code, a level, one
// product and one sum a block, which the look-up hides; no division.
struct Scales {
    Scales(const Dequantize& stored, int64_t block) : d(stored), next(block) { enter_group(); }

    __m256 take() {
        if (d.scales != nullptr) return _mm256_broadcast_ss(d.scales + next++);
        if (left == 0) enter_group();
        --left;
        const __m256 level = _mm256_broadcast_ss(d.nested_codebook + d.scale_codes[next++]);
        return _mm256_add_ps(_mm256_mul_ps(level, factor), _mm256_set1_ps(d.nested_offset));
    }

    void enter_group() {
        if (d.scales != nullptr) return;
        const int64_t group = next / d.nested_blocksize;
        left = (group + 1) * d.nested_blocksize - next;
        factor = _mm256_broadcast_ss(d.nested_scales + group);
    }

    const Dequantize& d;
    int64_t next;
    int64_t left = 0;
    __m256 factor = _mm256_setzero_ps();
};

// Sums a row of x, so that they do not wait for each other: four rows do not, and more would not stay in registers.
template <int R>
constexpr int kSums = R < 4 ? 2 : 1;

// Columns that take turns with one chunk of x: four rows of x do not stay in the first cache, chunks of them do.
template <int R>
constexpr int64_t kTurns = R < 4 ? 1 : kGroupColumns;

// Adds elements first <= i < last of row o of W times R rows of x to totals [R][kSums].
template <int R>
void add_row(const Skinny& s, const Levels& levels, int64_t o, int64_t first, int64_t last, float* totals) {
    constexpr int S = kSums<R>;
    const __m256i nibble = _mm256_set1_epi8(15);
    const int64_t begin = o * s.in_features;
    const uint8_t* packed = s.stored.packed + begin / 2;
    // where columns take turns, the same place of the next group
    const int64_t ahead = kTurns<R> == 1 ? kFetchAhead : kTurns<R> * s.in_features / 2;
    const int64_t block = (begin + first) / s.stored.blocksize;
    Scales scales(s.stored, block);
    __m256 total[R][S];
    for (int r = 0; r < R; ++r) {
        for (int sum = 0; sum < S; ++sum) total[r][sum] = _mm256_loadu_ps(totals + 8 * (r * S + sum));
    }
    int64_t block_end = (block + 1) * s.stored.blocksize - begin;
    for (int64_t i = first; i < last; block_end += s.stored.blocksize) {
        const int64_t end = block_end < last ? block_end : last;
        __m256 piece[R][S];
        for (int r = 0; r < R; ++r) {
            for (int sum = 0; sum < S; ++sum) piece[r][sum] = _mm256_setzero_ps();
        }
        for (; i < end; i += 64) {
            const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + i / 2));
            _mm_prefetch(reinterpret_cast<const char*>(packed + i / 2 + ahead), _MM_HINT_T0);
            __m256 level[4];
            for (int half = 0; half < 2; ++half) {
                const __m256i codes = half == 0 ? _mm256_srli_epi16(pairs, 4) : pairs;
                levels.look_up(_mm256_and_si256(codes, nibble), level);
                const float* x = s.x + i + 32 * half;
#pragma GCC unroll 4
                for (int quarter = 0; quarter < 4; ++quarter) {
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r) {
                        const __m256 value = _mm256_loadu_ps(x + r * s.in_features + 8 * quarter);
                        piece[r][quarter % S] = _mm256_fmadd_ps(level[quarter], value, piece[r][quarter % S]);
                    }
                }
            }
        }
        const __m256 scale = scales.take();
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            for (int sum = 0; sum < S; ++sum) total[r][sum] = _mm256_fmadd_ps(piece[r][sum], scale, total[r][sum]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int sum = 0; sum < S; ++sum) _mm256_storeu_ps(totals + 8 * (r * S + sum), total[r][sum]);
    }
}

template <int R>
void multiply_rows(const Skinny& s, const Levels& levels, int64_t first, int64_t last) {
    constexpr int64_t kTotals = 8 * R * kSums<R>;
    const int64_t chunk = kTurns<R> == 1 ? s.in_features : kChunk;
    for (int64_t start = first; start < last; start += kTurns<R>) {
        const int64_t columns = last - start < kTurns<R> ? last - start : kTurns<R>;
        float totals[kTurns<R> * kTotals] = {};
        for (int64_t i = 0; i < s.in_features; i += chunk) {
            const int64_t end = s.in_features - i < chunk ? s.in_features : i + chunk;
            for (int64_t c = 0; c < columns; ++c) add_row<R>(s, levels, start + c, i, end, totals + c * kTotals);
        }
        for (int64_t c = 0; c < columns; ++c) {
            for (int r = 0; r < R; ++r) {
                const float* of_row = totals + c * kTotals + 8 * kSums<R> * r;
                __m256 sum = _mm256_loadu_ps(of_row);
                if (kSums<R> == 2) sum = _mm256_add_ps(sum, _mm256_loadu_ps(of_row + 8 * (kSums<R> - 1)));
                s.y[r * s.out_features + start + c] = sum_of(sum);
            }
        }
    }
}

// Elements first <= i < last of row o of W, scaled; 8 at a time in the order of arrange_panel.
void fill_panel(const Skinny& s, const Levels& levels, int64_t o, int64_t first, int64_t last, float* panel) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const int64_t begin = o * s.in_features;
    const int64_t block = (begin + first) / s.stored.blocksize;
    Scales scales(s.stored, block);
    int64_t block_end = (block + 1) * s.stored.blocksize - begin;
    for (int64_t i = first; i < last; block_end += s.stored.blocksize) {
        const __m256 scale = scales.take();
        const int64_t end = block_end < last ? block_end : last;
        for (; i < end; i += 32) {
            const uint8_t* packed = s.stored.packed + (begin + i) / 2;
            const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
            _mm_prefetch(reinterpret_cast<const char*>(packed + kFetchAhead), _MM_HINT_T0);
            __m256 level[4];
            // even elements in the lower half, odd ones in the upper
            levels.look_up(_mm256_and_si256(_mm256_set_m128i(pairs, _mm_srli_epi16(pairs, 4)), nibble), level);
            for (int quarter = 0; quarter < 4; ++quarter) {
                _mm256_storeu_ps(panel + i - first + 8 * quarter, _mm256_mul_ps(level[quarter], scale));
            }
        }
    }
}

template <int R, int C>
void add_tile(const float* x, int64_t stride, const float* panel, int64_t count, float* sums) {
    __m256 sum[R][C];
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) sum[r][c] = _mm256_setzero_ps();
    }
    for (int64_t i = 0; i < count; i += 8) {
        __m256 w[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) w[c] = _mm256_loadu_ps(panel + c * kChunk + i);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const __m256 value = _mm256_loadu_ps(x + r * stride + i);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sum[r][c] = _mm256_fmadd_ps(w[c], value, sum[r][c]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) sums[r * kGroupColumns + c] += sum_of(sum[r][c]);
    }
}

void multiply_panels(const Skinny& s, const Levels& levels, int64_t first, int64_t last) {
    std::vector<float> panel(size_t(kGroupColumns * kChunk));
    for (int64_t start = first; start < last; start += kGroupColumns) {
        const int64_t columns = last - start < kGroupColumns ? last - start : kGroupColumns;
        float sums[kMostSkinnyRows * kGroupColumns] = {};
        for (int64_t i = 0; i < s.in_features; i += kChunk) {
            const int64_t count = s.in_features - i < kChunk ? s.in_features - i : kChunk;
            for (int64_t c = 0; c < columns; ++c) {
                fill_panel(s, levels, start + c, i, i + count, panel.data() + c * kChunk);
            }
            for_tiles(s.rows, 0, columns, [&](auto r, auto c, int64_t row, int64_t column) {
                add_tile<r.value, c.value>(s.x + row * s.in_features + i, s.in_features, panel.data() + column * kChunk,
                                           count, sums + row * kGroupColumns + column);
            });
        }
        for (int64_t row = 0; row < s.rows; ++row) {
            for (int64_t c = 0; c < columns; ++c) s.y[row * s.out_features + start + c] = sums[row * kGroupColumns + c];
        }
    }
}

void multiply(const Skinny& s, int64_t first, int64_t last) {
    const Levels levels(s.stored.codebook);
    if (!direct(s)) {
        multiply_panels(s, levels, first, last);
        return;
    }
    if (s.rows == 1) multiply_rows<1>(s, levels, first, last);
    if (s.rows == 2) multiply_rows<2>(s, levels, first, last);
    if (s.rows == 3) multiply_rows<3>(s, levels, first, last);
    if (s.rows == 4) multiply_rows<4>(s, levels, first, last);
}

// Position p of a group of 32 or 64 elements gets the element that the look-up leaves there: quarter q of 8 levels
// holds four codes of each 16 bytes.
template <class T>
void arrange(const Skinny& s, const void* values, float* arranged) {
    const T* x = static_cast<const T*>(values);
    const int group = direct(s) ? 64 : 32;
    int source[64];
    for (int p = 0; p < group; ++p) {
        const int quarter = p % 32 / 8, half = p % 8 / 4, code = 4 * quarter + p % 4;
        // direct: even elements first, then odd ones; panel: even elements in the lower halves, odd ones in the upper
        source[p] = group == 64 ? 2 * (16 * half + code) + p / 32 : 2 * code + half;
    }
    for (int64_t i = 0; i < s.rows * s.in_features; i += group) {
        for (int p = 0; p < group; ++p) arranged[i + p] = widen(x[i + source[p]]);
    }
}

}  // namespace

SkinnyKernels avx2_skinny() { return {arrange<float>, arrange<bf16>, multiply}; }

}  // namespace lorasmith
