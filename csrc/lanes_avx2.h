// Eight floats an AVX2 register, with FMA; bf16 is widened by a shift and rounded to nearest even. Sums across the
// lanes of floats and integers. In an unnamed namespace, as blockwise_body.h says why.
#pragma once

#include <immintrin.h>

#include <cmath>

#include "blockwise.h"
#include "lanes.h"

namespace lorasmith {
namespace {

inline float sum_of(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline int sum_of(__m256i lanes) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

struct Avx2Lanes {
    using Vec = __m256;

    static Vec set(float value) { return _mm256_set1_ps(value); }

    static Vec load(const float* x) { return _mm256_loadu_ps(x); }

    static Vec load(const bf16* x) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }

    static void store(float* x, Vec a) { _mm256_storeu_ps(x, a); }

    static void store(bf16* x, Vec a) {
        const __m256i high = _mm256_srli_epi32(nearest_bf16(a), 16);
        const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x), packed);
    }

    static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
    static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
    static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
    // the second where one is NaN
    static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
    static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
    // a where x < y, else b, also where one is NaN
    static Vec where_less(Vec x, Vec y, Vec a, Vec b) {
        return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
    }
    static Vec nearest(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static float root(float a) { return std::sqrt(a); }

    static Vec times_power_of_two(Vec a, Vec n) {
        const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    }

    static Vec round_bf16(Vec a) {
        return _mm256_castsi256_ps(_mm256_and_si256(nearest_bf16(a), _mm256_set1_epi32(int(0xffff0000))));
    }

    static float sum(Vec a) { return sum_of(a); }

    // The 32 bits of each value with its nearest bf16 in the upper half.
    static __m256i nearest_bf16(Vec a) {
        const __m256i bits = _mm256_castps_si256(a);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        // rounding up may carry a NaN's bits over into infinity or zero
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
        return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
    }
};

}  // namespace
}  // namespace lorasmith
