// AVX2 and FMA.
#include "lanes_avx2.h"
#include "token_loss_body.h"

namespace lorasmith {

TokenLossKernels avx2_token_loss() { return token_loss_kernels<Avx2Lanes>(); }

}  // namespace lorasmith
