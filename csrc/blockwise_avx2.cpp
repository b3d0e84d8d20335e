// AVX2 and F16C: sixteen entries need two registers of floats, or two of bytes for 16-bit values.
#include <immintrin.h>

#include "blockwise_body.h"

namespace lorasmith {
namespace {

struct Avx2 {
    static __m256 load(const float* x) { return _mm256_loadu_ps(x); }

    static __m256 load(const bf16* x) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }

    static __m256 load(const f16* x) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))); }

    template <class T>
    static float absmax(const T* x, int64_t count) {
        const __m256i magnitude_bits = _mm256_set1_epi32(0x7fffffff);
        __m256i largest = _mm256_setzero_si256();
        for (int64_t i = 0; i < count; i += 8) {
            const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(load(x + i)), magnitude_bits);
            largest = _mm256_max_epu32(largest, magnitude);
        }
        alignas(32) uint32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
        uint32_t most = lanes[0];
        for (int i = 1; i < 8; ++i) most = lanes[i] > most ? lanes[i] : most;
        return from_bits(most);
    }

    // The number of midpoints below, bit by bit from the top: at each step the midpoint to compare with is looked up
    // by the bits found so far; eight are the most that a step chooses from.
    static __m256i count_below(__m256 scaled, const __m256* tree) {
        __m256i below = _mm256_setzero_si256();
        for (int step = 0; step < 4; ++step) {
            const __m256 midpoint = _mm256_permutevar8x32_ps(tree[step], below);
            const __m256 above = _mm256_cmp_ps(midpoint, scaled, _CMP_NGE_UQ);
            // A true comparison is -1.
            below = _mm256_sub_epi32(_mm256_add_epi32(below, below), _mm256_castps_si256(above));
        }
        return below;
    }

    static void plant(const float* midpoints, __m256* tree) {
        for (int step = 0; step < 4; ++step) {
            alignas(32) float level[8] = {};
            const int stride = 16 >> step;
            for (int i = 0; i < 1 << step; ++i) level[i] = midpoints[stride / 2 - 1 + i * stride];
            tree[step] = _mm256_load_ps(level);
        }
    }

    template <class T>
    static __m256i codes_of(const T* x, __m256 factor, const __m256* tree) {
        const __m256 product = _mm256_mul_ps(load(x), factor);
        // min and max return their second operand where one is NaN.
        const __m256 at_most_one = _mm256_min_ps(_mm256_set1_ps(1.0f), product);
        return count_below(_mm256_max_ps(_mm256_set1_ps(-1.0f), at_most_one), tree);
    }

    template <class T>
    static void encode(const T* x, int64_t count, float reciprocal, const Quantize& q, uint8_t* packed) {
        __m256 tree[4];
        plant(q.midpoints, tree);
        const __m256 factor = _mm256_set1_ps(reciprocal);
        const __m128i order = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q.order));
        const __m128i weights = _mm_set1_epi16(0x0110);  // even element x 16 + odd element x 1
        for (int64_t i = 0; i < count; i += 16) {
            // packs works in each 128-bit half, so the quarters come out as 0 2 1 3.
            const __m256i mixed = _mm256_packs_epi32(codes_of(x + i, factor, tree), codes_of(x + i + 8, factor, tree));
            const __m256i sorted = _mm256_permute4x64_epi64(mixed, 0xd8);
            const __m128i below = _mm_packus_epi16(_mm256_castsi256_si128(sorted), _mm256_extracti128_si256(sorted, 1));
            const __m128i pairs = _mm_maddubs_epi16(_mm_shuffle_epi8(order, below), weights);
            _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + i / 2), _mm_packus_epi16(pairs, pairs));
        }
    }

    static void scale_table(const float* codebook, float scale, float* table) {
        const __m256 factor = _mm256_set1_ps(scale);
        _mm256_store_ps(table, _mm256_mul_ps(_mm256_loadu_ps(codebook), factor));
        _mm256_store_ps(table + 8, _mm256_mul_ps(_mm256_loadu_ps(codebook + 8), factor));
    }

    static void scale_table(const float* codebook, float scale, bf16* table) {
        const __m256 factor = _mm256_set1_ps(scale);
        const __m256i low = round_to_bf16(_mm256_mul_ps(_mm256_loadu_ps(codebook), factor));
        const __m256i high = round_to_bf16(_mm256_mul_ps(_mm256_loadu_ps(codebook + 8), factor));
        // packus works in each 128-bit half, so the quarters come out as 0 2 1 3.
        const __m256i sorted = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
        _mm256_store_si256(reinterpret_cast<__m256i*>(table), sorted);
    }

    // The upper 16 bits of each float, ties to even, in the lower half of its lane.
    static __m256i round_to_bf16(__m256 value) {
        const __m256i bits = _mm256_castps_si256(value);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
        return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), nan);
    }

    // permutevar8x32 reads three bits of an index; the fourth chooses between the halves of the table.
    static void expand(const uint8_t* packed, int64_t count, const float* table, float* out, bool stream) {
        const __m256 low = _mm256_load_ps(table);
        const __m256 high = _mm256_load_ps(table + 8);
        for (int64_t i = 0; i < count; i += 8) {
            int32_t bytes;
            std::memcpy(&bytes, packed + i / 2, sizeof bytes);
            const __m256i pair = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
            const __m256i code = _mm256_or_si256(_mm256_srli_epi64(pair, 4), _mm256_slli_epi64(pair, 32));
            const __m256 fourth_bit = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
            const __m256 from_low = _mm256_permutevar8x32_ps(low, code);
            const __m256 from_high = _mm256_permutevar8x32_ps(high, code);
            const __m256 values = _mm256_blendv_ps(from_low, from_high, fourth_bit);
            if (stream) {
                _mm256_stream_ps(out + i, values);
            } else {
                _mm256_storeu_ps(out + i, values);
            }
        }
    }

    static void finish_stream() { _mm_sfence(); }

    // Low and high bytes of the sixteen values are looked up apart and put together again.
    static void expand(const uint8_t* packed, int64_t count, const bf16* table, bf16* out, bool) {
        const __m128i first = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
        const __m128i second = _mm_load_si128(reinterpret_cast<const __m128i*>(table + 8));
        const __m128i low_byte = _mm_set1_epi16(0xff);
        const __m128i low_bytes = _mm_packus_epi16(_mm_and_si128(first, low_byte), _mm_and_si128(second, low_byte));
        const __m128i high_bytes = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
        const __m128i nibble = _mm_set1_epi8(15);
        for (int64_t i = 0; i < count; i += 32) {
            const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i / 2));
            const __m128i even = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
            const __m128i odd = _mm_and_si128(pairs, nibble);
            store16(_mm_unpacklo_epi8(even, odd), low_bytes, high_bytes, out + i);
            store16(_mm_unpackhi_epi8(even, odd), low_bytes, high_bytes, out + i + 16);
        }
    }

    static void store16(__m128i codes, __m128i low_bytes, __m128i high_bytes, bf16* out) {
        const __m128i low = _mm_shuffle_epi8(low_bytes, codes);
        const __m128i high = _mm_shuffle_epi8(high_bytes, codes);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi8(low, high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm_unpackhi_epi8(low, high));
    }
};

}  // namespace

Kernels avx2_kernels() { return kernels_of<Avx2>(); }

}  // namespace lorasmith
