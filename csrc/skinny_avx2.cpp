// AVX2 and FMA: the four bytes of each level are looked up apart, 32 codes at a time, and put together by unpacking.
//
// Unpacking leaves eight levels in the order 0 2 4 6 1 3 5 7 of their elements, and so it is x that is put into that
// order once, instead of the levels each time.
#include <immintrin.h>

#include "skinny_body.h"

namespace lorasmith {
namespace {

struct Avx2 {
    struct Table {
        explicit Table(const float* codebook) {
            for (int byte = 0; byte < 4; ++byte) {
                alignas(16) uint8_t bytes[16];
                for (int i = 0; i < 16; ++i) bytes[i] = uint8_t(to_bits(codebook[i]) >> (8 * byte));
                of_byte[byte] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
            }
        }
        __m256i of_byte[4];
    };

    // Sums of different quarters of the 32 elements go to different registers, so that they do not wait for each other.
    template <int R>
    struct Sums {
        static constexpr int kParts = 4 / R;
        __m256 of[R][kParts];
    };

    template <int R>
    static void add(const Table& table, const uint8_t* packed, int64_t count, const float* x, int64_t stride,
                    Sums<R>& sums) {
        const __m256i nibble = _mm256_set1_epi8(15);
        for (int64_t i = 0; i < count; i += 32) {
            const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i / 2));
            // even elements in the lower half, odd ones in the upper
            const __m256i codes = _mm256_and_si256(_mm256_set_m128i(pairs, _mm_srli_epi16(pairs, 4)), nibble);
            const __m256i byte0 = _mm256_shuffle_epi8(table.of_byte[0], codes);
            const __m256i byte1 = _mm256_shuffle_epi8(table.of_byte[1], codes);
            const __m256i byte2 = _mm256_shuffle_epi8(table.of_byte[2], codes);
            const __m256i byte3 = _mm256_shuffle_epi8(table.of_byte[3], codes);
            const __m256i low0 = _mm256_unpacklo_epi8(byte0, byte1), low1 = _mm256_unpackhi_epi8(byte0, byte1);
            const __m256i high0 = _mm256_unpacklo_epi8(byte2, byte3), high1 = _mm256_unpackhi_epi8(byte2, byte3);
            const __m256 levels[4] = {_mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0)),
                                      _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0)),
                                      _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1)),
                                      _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1))};
            for (int quarter = 0; quarter < 4; ++quarter) {
                for (int r = 0; r < R; ++r) {
                    __m256& sum = sums.of[r][quarter % Sums<R>::kParts];
                    sum = _mm256_fmadd_ps(levels[quarter], _mm256_loadu_ps(x + r * stride + i + 8 * quarter), sum);
                }
            }
        }
    }

    template <int R>
    static void add_scaled(const Sums<R>& piece, float scale, Sums<R>& total) {
        const __m256 factor = _mm256_set1_ps(scale);
        for (int r = 0; r < R; ++r) {
            for (int part = 0; part < Sums<R>::kParts; ++part) {
                total.of[r][part] = _mm256_fmadd_ps(piece.of[r][part], factor, total.of[r][part]);
            }
        }
    }

    template <int R>
    static void write(const Sums<R>& total, float* y, int64_t stride) {
        for (int r = 0; r < R; ++r) {
            __m256 sum = total.of[r][0];
            for (int part = 1; part < Sums<R>::kParts; ++part) sum = _mm256_add_ps(sum, total.of[r][part]);
            const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
            const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            y[r * stride] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
        }
    }

    static void arrange(const float* x, int64_t count, float* arranged) {
        const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
        for (int64_t i = 0; i < count; i += 8) {
            _mm256_storeu_ps(arranged + i, _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + i), order));
        }
    }
};

}  // namespace

SkinnyKernels avx2_skinny() { return {Avx2::arrange, skinny_columns<Avx2>}; }

}  // namespace lorasmith
