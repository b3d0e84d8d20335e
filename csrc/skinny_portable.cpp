// Plain C++ for any processor.
#include "skinny_body.h"

namespace lorasmith {
namespace {

struct Portable {
    struct Table {
        explicit Table(const float* codebook) : level(codebook) {}
        const float* level;
    };

    template <int R>
    struct Sums {
        float of[R];
    };

    template <int R>
    static void add(const Table& table, const uint8_t* packed, int64_t count, const float* x, int64_t stride,
                    Sums<R>& sums) {
        for (int64_t i = 0; i < count; i += 2) {
            const float even = table.level[packed[i / 2] >> 4];
            const float odd = table.level[packed[i / 2] & 15];
            for (int r = 0; r < R; ++r) sums.of[r] += even * x[r * stride + i] + odd * x[r * stride + i + 1];
        }
    }

    template <int R>
    static void add_scaled(const Sums<R>& piece, float scale, Sums<R>& total) {
        for (int r = 0; r < R; ++r) total.of[r] += piece.of[r] * scale;
    }

    template <int R>
    static void write(const Sums<R>& total, float* y, int64_t stride) {
        for (int r = 0; r < R; ++r) y[r * stride] = total.of[r];
    }

    static void arrange(const float* x, int64_t count, float* arranged) {
        std::memcpy(arranged, x, size_t(count) * sizeof(float));
    }
};

}  // namespace

SkinnyKernels portable_skinny() { return {Portable::arrange, skinny_columns<Portable>}; }

}  // namespace lorasmith
