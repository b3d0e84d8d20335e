// Plain C++ for any processor.
#include "lanes_portable.h"
#include "token_loss_body.h"

namespace lorasmith {

TokenLossKernels portable_token_loss() { return token_loss_kernels<PortableLanes>(); }

}  // namespace lorasmith
