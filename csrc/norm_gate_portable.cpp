// Plain C++ for any processor.
#include "lanes_portable.h"
#include "norm_gate_body.h"

namespace lorasmith {

NormGateKernels portable_norm_gate() { return norm_gate_kernels<PortableLanes>(); }

}  // namespace lorasmith
