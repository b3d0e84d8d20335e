// AVX2 and FMA.
#include "lanes_avx2.h"
#include "low_rank_body.h"

namespace lorasmith {

LowRankKernels avx2_low_rank() { return low_rank_kernels<Avx2Lanes>(); }

}  // namespace lorasmith
