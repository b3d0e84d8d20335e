// AVX2 and FMA.
#include <immintrin.h>

#include "low_rank_body.h"

namespace lorasmith {
namespace {

struct Avx2 {
    using Vec = __m256;

    static Vec all(float value) { return _mm256_set1_ps(value); }

    static Vec load(const float* x) { return _mm256_loadu_ps(x); }

    static Vec load(const bf16* x) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }

    static void store(float* out, Vec values) { _mm256_storeu_ps(out, values); }

    // to nearest, ties to even, as narrow() does it
    static void store(bf16* out, Vec values) {
        const __m256i bits = _mm256_castps_si256(values);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
        const __m256i chosen = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
        const __m256i halves = _mm256_srli_epi32(chosen, 16);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(packed));
    }

    static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

    static float sum(Vec values) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
};

}  // namespace

LowRankKernels avx2_low_rank() { return low_rank_kernels<Avx2>(); }

}  // namespace lorasmith
