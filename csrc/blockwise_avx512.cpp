// AVX-512 (F, BW, VL): the sixteen levels or values lie in one register and are looked up by permuting it.
#include <immintrin.h>

#include "blockwise_body.h"

namespace lorasmith {
namespace {

struct Avx512 {
    static __m512 load(const float* x) { return _mm512_loadu_ps(x); }

    static __m512 load(const bf16* x) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }

    static __m512 load(const f16* x) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    }

    template <class T>
    static float absmax(const T* x, int64_t count) {
        const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
        __m512i largest = _mm512_setzero_si512();
        for (int64_t i = 0; i < count; i += 16) {
            const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(load(x + i)), magnitude_bits);
            largest = _mm512_max_epu32(largest, magnitude);
        }
        return from_bits(_mm512_reduce_max_epu32(largest));
    }

    // The number of midpoints below, bit by bit from the top: at each step the midpoint to compare with is looked up
    // by the bits found so far. tree[k] holds the midpoints of step k in ascending order.
    static __m128i count_below(__m512 scaled, const __m512* tree) {
        const __m512i one = _mm512_set1_epi32(1);
        __m512i below = _mm512_setzero_si512();
        for (int step = 0; step < 4; ++step) {
            const __m512 midpoint = _mm512_permutexvar_ps(below, tree[step]);
            const __mmask16 above = _mm512_cmp_ps_mask(midpoint, scaled, _CMP_NGE_UQ);
            below = _mm512_add_epi32(below, below);
            below = _mm512_mask_add_epi32(below, above, below, one);
        }
        return _mm512_cvtepi32_epi8(below);
    }

    static void plant(const float* midpoints, __m512* tree) {
        for (int step = 0; step < 4; ++step) {
            alignas(64) float level[16] = {};
            const int stride = 16 >> step;
            for (int i = 0; i < 1 << step; ++i) level[i] = midpoints[stride / 2 - 1 + i * stride];
            tree[step] = _mm512_load_ps(level);
        }
    }

    template <class T>
    static void encode(const T* x, int64_t count, float reciprocal, const Quantize& q, uint8_t* packed) {
        __m512 tree[4];
        plant(q.midpoints, tree);
        const __m512 factor = _mm512_set1_ps(reciprocal);
        const __m512 one = _mm512_set1_ps(1.0f);
        const __m512 minus_one = _mm512_set1_ps(-1.0f);
        const __m128i order = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q.order));
        const __m128i weights = _mm_set1_epi16(0x0110);  // even element x 16 + odd element x 1
        for (int64_t i = 0; i < count; i += 16) {
            const __m512 product = _mm512_mul_ps(load(x + i), factor);
            // min and max return their second operand where one is NaN.
            const __m512 scaled = _mm512_max_ps(minus_one, _mm512_min_ps(one, product));
            const __m128i codes = _mm_shuffle_epi8(order, count_below(scaled, tree));
            const __m128i pairs = _mm_maddubs_epi16(codes, weights);
            _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + i / 2), _mm_packus_epi16(pairs, pairs));
        }
    }

    static void scale_table(const float* codebook, float scale, float* table) {
        _mm512_store_ps(table, _mm512_mul_ps(_mm512_loadu_ps(codebook), _mm512_set1_ps(scale)));
    }

    // Ties to even; not the processor's own conversion, which takes denormals for zeros.
    static void scale_table(const float* codebook, float scale, bf16* table) {
        const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(codebook), _mm512_set1_ps(scale));
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        const __m512i rounded = _mm512_mask_set1_epi32(_mm512_srli_epi32(up, 16), nan, 0x7fc0);
        _mm256_store_si256(reinterpret_cast<__m256i*>(table), _mm512_cvtepi32_epi16(rounded));
    }

    // permutexvar_ps reads the low four bits of an index, so the even nibble needs a shift and the odd one no mask.
    static void expand(const uint8_t* packed, int64_t count, const float* table, float* out, bool stream) {
        const __m512 values = _mm512_load_ps(table);
        for (int64_t i = 0; i < count; i += 16) {
            const __m512i pair =
                _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + i / 2)));
            const __m512i code = _mm512_or_si512(_mm512_srli_epi64(pair, 4), _mm512_slli_epi64(pair, 32));
            if (stream) {
                _mm512_stream_ps(out + i, _mm512_permutexvar_ps(code, values));
            } else {
                _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(code, values));
            }
        }
    }

    static void finish_stream() { _mm_sfence(); }

    // Here five bits are read; the table lies in the register twice, so that the fifth does not matter.
    static void expand(const uint8_t* packed, int64_t count, const bf16* table, bf16* out, bool) {
        const __m512i values = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(table)));
        for (int64_t i = 0; i < count; i += 32) {
            const __m512i pair =
                _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i / 2)));
            const __m512i code = _mm512_or_si512(_mm512_srli_epi32(pair, 4), _mm512_slli_epi32(pair, 16));
            _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(code, values));
        }
    }
};

}  // namespace

Kernels avx512_kernels() { return kernels_of<Avx512>(); }

}  // namespace lorasmith
