// AVX2 and FMA.
#include "lanes_avx2.h"
#include "norm_gate_body.h"

namespace lorasmith {

NormGateKernels avx2_norm_gate() { return norm_gate_kernels<Avx2Lanes>(); }

}  // namespace lorasmith
