// Products of int8 matrices, y = a b^T with sums in int32, exact while in_features is below 2^17.
//
// a [rows, in_features], b [columns, in_features] and y [rows, columns] lie flat and row-major. Any code from -128 to
// 127 may stand in both: two products of -128 and -128 are 2^15, which a sum of pairs in int32 holds.
#pragma once

#include <cstdint>

namespace lorasmith {

struct Int8Product {
    const int8_t* a;
    const int8_t* b;
    int32_t* y;
    int64_t rows;
    int64_t columns;
    int64_t in_features;
};

// Writes the columns first <= c < last of y.
using MultiplyInt8 = void (*)(const Int8Product&, int64_t first, int64_t last);

void multiply_int8_portable(const Int8Product&, int64_t first, int64_t last);
void multiply_int8_avx2(const Int8Product&, int64_t first, int64_t last);

}  // namespace lorasmith
