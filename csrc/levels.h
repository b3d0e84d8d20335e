// Which instruction sets this build holds and this processor runs.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "blockwise.h"
#include "int8.h"
#include "low_rank.h"
#include "narrow.h"
#include "norm_gate.h"
#include "skinny.h"
#include "token_loss.h"

namespace lorasmith {

// The usable levels, best last: "portable", then "avx2", "avx512".
inline std::vector<std::string> usable_levels() {
    std::vector<std::string> levels{"portable"};
#ifdef LORASMITH_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("f16c")) levels.push_back("avx2");
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        levels.push_back("avx512");
    }
#endif
    return levels;
}

inline Kernels kernels_at(const std::string& level) {
    for (const std::string& usable : usable_levels()) {
        if (usable != level) continue;
#ifdef LORASMITH_X86
        if (level == "avx512") return avx512_kernels();
        if (level == "avx2") return avx2_kernels();
#endif
        return portable_kernels();
    }
    throw std::invalid_argument("level '" + level + "' is not one that this build and processor can run");
}

// The better of the two that most kernels have; AVX-512 runs AVX2's.
#ifdef LORASMITH_X86
#define LORASMITH_AVX2_OR(level, avx2, portable) ((level) != "portable" ? (avx2) : (portable))
#else
#define LORASMITH_AVX2_OR(level, avx2, portable) (portable)
#endif

inline SkinnyKernels skinny_at(const std::string& level) {
    return LORASMITH_AVX2_OR(level, avx2_skinny, portable_skinny)();
}

inline LowRankKernels low_rank_at(const std::string& level) {
    return LORASMITH_AVX2_OR(level, avx2_low_rank, portable_low_rank)();
}

inline NormGateKernels norm_gate_at(const std::string& level) {
    return LORASMITH_AVX2_OR(level, avx2_norm_gate, portable_norm_gate)();
}

inline TokenLossKernels token_loss_at(const std::string& level) {
    return LORASMITH_AVX2_OR(level, avx2_token_loss, portable_token_loss)();
}

inline auto multiply_narrow_at(const std::string& level) {
    return LORASMITH_AVX2_OR(level, multiply_narrow_avx2, multiply_narrow_portable);
}

inline MultiplyInt8 multiply_int8_at(const std::string& level) {
    return LORASMITH_AVX2_OR(level, multiply_int8_avx2, multiply_int8_portable);
}

#undef LORASMITH_AVX2_OR

}  // namespace lorasmith
