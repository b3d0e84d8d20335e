// Plain C++ for any processor; the compiler vectorizes the comparisons where it can.
#include "blockwise_body.h"

namespace lorasmith {
namespace {

constexpr int64_t kStep = 32;

struct Portable {
    template <class T>
    static float absmax(const T* x, int64_t count) {
        return absmax_plain(x, count);
    }

    // Comparing a whole group with one midpoint after the other keeps the inner loop free of branches and of look-ups.
    template <class T>
    static void encode(const T* x, int64_t count, float reciprocal, const Quantize& q, uint8_t* packed) {
        float scaled[kStep];
        int32_t below[kStep];
        for (int64_t start = 0; start < count; start += kStep) {
            for (int i = 0; i < kStep; ++i) {
                scaled[i] = clamp_to_one(widen(x[start + i]) * reciprocal);
                below[i] = 0;
            }
            for (int m = 0; m < 15; ++m) {
                for (int i = 0; i < kStep; ++i) below[i] += !(q.midpoints[m] >= scaled[i]);
            }
            for (int i = 0; i < kStep; i += 2) {
                packed[(start + i) / 2] = uint8_t(q.order[below[i]] << 4 | q.order[below[i + 1]]);
            }
        }
    }

    template <class T>
    static void scale_table(const float* codebook, float scale, T* table) {
        scale_table_plain(codebook, scale, table);
    }

    template <class T>
    static void expand(const uint8_t* packed, int64_t count, const T* table, T* out, bool) {
        expand_plain(packed, count, table, out);
    }

    static void finish_stream() {}
};

}  // namespace

Kernels portable_kernels() { return kernels_of<Portable>(); }

}  // namespace lorasmith
