// AVX2 and FMA.
#include <cmath>

#include "lanes_avx2.h"
#include "norm_gate_body.h"

namespace lorasmith {
namespace {

struct Avx2 : Avx2Lanes {
    static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
    static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
    // the second where one is NaN
    static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
    static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
    static Vec nearest(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static float root(float a) { return std::sqrt(a); }

    static Vec times_power_of_two(Vec a, Vec n) {
        const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    }

    static Vec round_bf16(Vec a) {
        return _mm256_castsi256_ps(_mm256_and_si256(nearest_bf16(a), _mm256_set1_epi32(int(0xffff0000))));
    }
};

}  // namespace

NormGateKernels avx2_norm_gate() { return norm_gate_kernels<Avx2>(); }

}  // namespace lorasmith
