// The order in which a product of a few rows visits y: tiles of a few rows by a few columns, so that what is loaded
// into registers serves several sums. In an unnamed namespace, as blockwise_body.h says why.
//
// tile(Rows, Columns, row, column) is called with two Size constants and writes y[row + r][column + c].
#pragma once

#include <cstdint>
#include <type_traits>

namespace lorasmith {
namespace {

template <int N>
using Size = std::integral_constant<int, N>;

// The columns of one group stay in the second cache for all rows.
constexpr int64_t kGroupColumns = 8;

template <class Rows, class Tile>
void tiles_of_rows(Rows rows, int64_t row, int64_t first, int64_t last, const Tile& tile) {
    // Eight sums at least, where there are that many, so that they do not wait for each other.
    constexpr int kColumns = Rows::value <= 2 ? 4 : 2;
    int64_t column = first;
    for (; column + kColumns <= last; column += kColumns) tile(rows, Size<kColumns>{}, row, column);
    for (; column < last; ++column) tile(rows, Size<1>{}, row, column);
}

template <class Tile>
void for_tiles(int64_t rows, int64_t first, int64_t last, const Tile& tile) {
    for (int64_t start = first; start < last; start += kGroupColumns) {
        const int64_t end = start + kGroupColumns < last ? start + kGroupColumns : last;
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4) tiles_of_rows(Size<4>{}, row, start, end, tile);
        if (rows - row == 3) tiles_of_rows(Size<3>{}, row, start, end, tile);
        if (rows - row == 2) tiles_of_rows(Size<2>{}, row, start, end, tile);
        if (rows - row == 1) tiles_of_rows(Size<1>{}, row, start, end, tile);
    }
}

}  // namespace
}  // namespace lorasmith
