// 8-bit codes, for the scales of double quantization. Plain C++.
#include "blockwise_body.h"

namespace lorasmith {
namespace {

constexpr float kHalfSteps = 65535.0f / 2.0f;
constexpr float kStep = float(2.0 / 65535.0);

// The number of midpoints below value, by halving without branches.
int count_below(const float* midpoints, float value) {
    int below = 0;
    for (int half = 128; half > 0; half /= 2) below += half * int(midpoints[below + half - 1] < value);
    return below;
}

// NaN, which is 0 * (1 / 0) in a block of zeros, stands at the first point.
float nearest_point(float scaled) {
    if (scaled != scaled) return -1.0f;
    const float steps = (clamp_to_one(scaled) + 1.0f) * kHalfSteps + 0.5f;
    return float(int32_t(steps)) * kStep - 1.0f;
}

}  // namespace

void quantize_8bit_blocks(const Quantize8& q, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
        const int64_t start = block * q.blocksize;
        const int64_t rest = q.n - start;
        const int64_t count = rest < q.blocksize ? rest : q.blocksize;
        const float absmax = absmax_plain(q.x + start, count);
        const float reciprocal = 1.0f / absmax;
        q.scales[block] = absmax;
        for (int64_t i = start; i < start + count; ++i) {
            q.codes[i] = q.order[count_below(q.midpoints, nearest_point(q.x[i] * reciprocal))];
        }
    }
}

}  // namespace lorasmith
