// Plain C++ for any processor.
#include "lanes_portable.h"
#include "narrow_body.h"

namespace lorasmith {

void multiply_narrow_portable(const Narrow& p, int64_t first, int64_t last) {
    multiply_narrow<PortableLanes>(p, first, last);
}

}  // namespace lorasmith
