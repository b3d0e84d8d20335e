// Eight floats at a time: what lanes_portable.h and lanes_avx2.h supply to the loops over rows.
//   Vec, set(float), load(const float*), load(const bf16*), store(float*, Vec), store(bf16*, Vec),
//   add, sub, mul, div, min, max, fma(a, b, c) = a * b + c, nearest (integer), where_less, times_power_of_two(a, n) = a
//   * 2^n, round_bf16, sum(Vec), root(float)
#pragma once

#include <cstdint>

namespace lorasmith {

constexpr int64_t kLanes = 8;

}  // namespace lorasmith
