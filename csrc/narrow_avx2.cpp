// AVX2 and FMA.
#include "lanes_avx2.h"
#include "narrow_body.h"

namespace lorasmith {

void multiply_narrow_avx2(const Narrow& p, int64_t first, int64_t last) { multiply_narrow<Avx2Lanes>(p, first, last); }

}  // namespace lorasmith
