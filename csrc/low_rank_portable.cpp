// Plain C++ for any processor.
#include "lanes_portable.h"
#include "low_rank_body.h"

namespace lorasmith {

LowRankKernels portable_low_rank() { return low_rank_kernels<PortableLanes>(); }

}  // namespace lorasmith
