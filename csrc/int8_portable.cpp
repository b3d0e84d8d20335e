// Plain C++ for any processor: tiles of dot products, which the compiler turns into what vectors it has.
#include "int8.h"
#include "tiles.h"

namespace lorasmith {

void multiply_int8_portable(const Int8Product& p, int64_t first, int64_t last) {
    for_tiles(p.rows, first, last, [&](auto rows, auto columns, int64_t row, int64_t column) {
        for (int r = 0; r < rows.value; ++r) {
            for (int c = 0; c < columns.value; ++c) {
                const int8_t* a = p.a + (row + r) * p.in_features;
                const int8_t* b = p.b + (column + c) * p.in_features;
                int32_t sum = 0;
                for (int64_t i = 0; i < p.in_features; ++i) sum += int32_t(a[i]) * int32_t(b[i]);
                p.y[(row + r) * p.columns + column + c] = sum;
            }
        }
    });
}

}  // namespace lorasmith
