// The Python face of the kernels: checks sizes against each other, releases the GIL, chooses the instruction set.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "levels.h"
#include "parallel.h"

namespace nb = nanobind;

namespace lorasmith {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 1 << 15;

// An f32 output beyond this is streamed: it would fall out of the last cache before anybody read it, and a plain store
// reads every line before it writes it. bf16 values are not: their output is half as large, and a product follows.
constexpr int64_t kStreamBytes = int64_t(32) << 20;

template <class T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyArray = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MaybeFloats = std::optional<Array<const float>>;
using AnyOutput = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class A>
bool is_float(const A& array, int bits) {
    return array.dtype() == nb::dlpack::dtype{uint8_t(nb::dlpack::dtype_code::Float), uint8_t(bits), 1};
}

template <class A>
bool is_bfloat(const A& array) {
    return array.dtype() == nb::dlpack::dtype{uint8_t(nb::dlpack::dtype_code::Bfloat), 16, 1};
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class A>
void check_size(const A& array, int64_t size, const char* name) {
    if (int64_t(array.shape(0)) == size) return;
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.shape(0)) + " elements, not " +
                                std::to_string(size));
}

void check_blocksize(int64_t blocksize) {
    if (blocksize <= 0 || blocksize % 32 != 0) throw std::invalid_argument("blocksize is not a multiple of 32");
}

void quantize_4bit(AnyArray x, Array<const float> midpoints, Array<const uint8_t> order, Array<uint8_t> packed,
                   Array<float> scales, int64_t blocksize, int threads, const std::string& level) {
    const int64_t n = int64_t(x.shape(0));
    check_blocksize(blocksize);
    check_size(midpoints, 15, "midpoints");
    check_size(order, 16, "order");
    check_size(packed, ceil_div(n, 2), "packed");
    check_size(scales, ceil_div(n, blocksize), "scales");
    const Kernels kernels = kernels_at(level);
    QuantizeBlocks kernel;
    if (is_float(x, 32)) {
        kernel = kernels.quantize_f32;
    } else if (is_bfloat(x)) {
        kernel = kernels.quantize_bf16;
    } else if (is_float(x, 16)) {
        kernel = kernels.quantize_f16;
    } else {
        throw std::invalid_argument("x is neither float32, bfloat16 nor float16");
    }
    const Quantize q{x.data(), midpoints.data(), order.data(), packed.data(), scales.data(), n, blocksize};
    const nb::gil_scoped_release released;
    for_ranges(ceil_div(n, blocksize), kElementsPerThread / blocksize, threads,
               [&](int64_t first, int64_t last) { kernel(q, first, last); });
}

void quantize_8bit(Array<const float> x, Array<const float> midpoints, Array<const uint8_t> order, Array<uint8_t> codes,
                   Array<float> scales, int64_t blocksize, int threads) {
    const int64_t n = int64_t(x.shape(0));
    check_blocksize(blocksize);
    check_size(midpoints, 255, "midpoints");
    check_size(order, 256, "order");
    check_size(codes, n, "codes");
    check_size(scales, ceil_div(n, blocksize), "scales");
    const Quantize8 q{x.data(), midpoints.data(), order.data(), codes.data(), scales.data(), n, blocksize};
    const nb::gil_scoped_release released;
    for_ranges(ceil_div(n, blocksize), kElementsPerThread / blocksize, threads,
               [&](int64_t first, int64_t last) { quantize_8bit_blocks(q, first, last); });
}

// The parts of a stored tensor of n elements; scales are f32, or codes where the nested parts are given.
Dequantize stored_4bit(const Array<const uint8_t>& packed, const AnyArray& scales, const Array<const float>& codebook,
                       int64_t blocksize, const MaybeFloats& nested_scales, const MaybeFloats& nested_offset,
                       const MaybeFloats& nested_codebook, int64_t nested_blocksize, int64_t n) {
    check_blocksize(blocksize);
    const int64_t blocks = ceil_div(n, blocksize);
    check_size(packed, ceil_div(n, 2), "packed");
    check_size(scales, blocks, "scales");
    check_size(codebook, 16, "codebook");
    Dequantize d{};
    d.n = n;
    d.packed = packed.data();
    d.codebook = codebook.data();
    d.blocksize = blocksize;
    if (!nested_scales || !nested_offset || !nested_codebook) {
        if (!is_float(scales, 32)) throw std::invalid_argument("scales are not float32, and no nested parts are given");
        d.scales = static_cast<const float*>(scales.data());
        return d;
    }
    if (scales.dtype() != nb::dtype<uint8_t>()) throw std::invalid_argument("nested scales are not codes of uint8");
    check_blocksize(nested_blocksize);
    check_size(*nested_scales, ceil_div(blocks, nested_blocksize), "nested_scales");
    check_size(*nested_offset, 1, "nested_offset");
    check_size(*nested_codebook, 256, "nested_codebook");
    d.scale_codes = static_cast<const uint8_t*>(scales.data());
    d.nested_scales = nested_scales->data();
    d.nested_offset = nested_offset->data()[0];
    d.nested_codebook = nested_codebook->data();
    d.nested_blocksize = nested_blocksize;
    return d;
}

void dequantize_4bit(Array<const uint8_t> packed, AnyArray scales, Array<const float> codebook, int64_t blocksize,
                     MaybeFloats nested_scales, MaybeFloats nested_offset, MaybeFloats nested_codebook,
                     int64_t nested_blocksize, AnyOutput out, int threads, const std::string& level) {
    Dequantize d = stored_4bit(packed, scales, codebook, blocksize, nested_scales, nested_offset, nested_codebook,
                               nested_blocksize, int64_t(out.shape(0)));
    d.out = out.data();
    const Kernels kernels = kernels_at(level);
    DequantizeBlocks kernel;
    if (is_float(out, 32)) {
        kernel = kernels.dequantize_f32;
        d.stream = d.n * int64_t(sizeof(float)) > kStreamBytes && reinterpret_cast<uintptr_t>(d.out) % 64 == 0;
    } else if (is_bfloat(out)) {
        kernel = kernels.dequantize_bf16;
    } else {
        throw std::invalid_argument("out is neither float32 nor bfloat16");
    }
    const nb::gil_scoped_release released;
    for_ranges(ceil_div(d.n, d.blocksize), kElementsPerThread / d.blocksize, threads,
               [&](int64_t first, int64_t last) { kernel(d, first, last); });
}

// y [rows, out_features] = x [rows, in_features] W^T, all flat.
void multiply_4bit(Array<const uint8_t> packed, AnyArray scales, Array<const float> codebook, int64_t blocksize,
                   MaybeFloats nested_scales, MaybeFloats nested_offset, MaybeFloats nested_codebook,
                   int64_t nested_blocksize, Array<const float> x, Array<float> y, int64_t in_features, int threads,
                   const std::string& level) {
    if (in_features < 32 || in_features % 32 != 0) throw std::invalid_argument("in_features is not a multiple of 32");
    Skinny s{};
    s.rows = int64_t(x.shape(0)) / in_features;
    s.in_features = in_features;
    if (s.rows < 1 || s.rows > kMostSkinnyRows) throw std::invalid_argument("x has no row, or too many");
    s.out_features = int64_t(y.shape(0)) / s.rows;
    check_size(x, s.rows * in_features, "x");
    check_size(y, s.rows * s.out_features, "y");
    s.stored = stored_4bit(packed, scales, codebook, blocksize, nested_scales, nested_offset, nested_codebook,
                           nested_blocksize, s.out_features * in_features);
    s.y = y.data();
    const SkinnyKernels kernels = skinny_at(level);
    const nb::gil_scoped_release released;
    std::vector<float> arranged(size_t(s.rows * in_features));
    kernels.arrange(s, x.data(), arranged.data());
    s.x = arranged.data();
    for_ranges(s.out_features, kElementsPerThread / in_features, threads,
               [&](int64_t first, int64_t last) { kernels.multiply(s, first, last); });
}

// y [rows, columns] = a [rows, in_features] b [columns, in_features]^T, all flat.
void multiply_int8(Array<const int8_t> a, Array<const int8_t> b, Array<int32_t> y, int64_t in_features, int threads,
                   const std::string& level) {
    if (in_features < 1) throw std::invalid_argument("in_features is not positive");
    const int64_t rows = int64_t(a.shape(0)) / in_features, columns = int64_t(b.shape(0)) / in_features;
    check_size(a, rows * in_features, "a");
    check_size(b, columns * in_features, "b");
    check_size(y, rows * columns, "y");
    const Int8Product p{a.data(), b.data(), y.data(), rows, columns, in_features};
    const MultiplyInt8 multiply = multiply_int8_at(level);
    const nb::gil_scoped_release released;
    for_ranges(columns, kElementsPerThread / in_features, threads,
               [&](int64_t first, int64_t last) { multiply(p, first, last); });
}

const char* threading() {
#ifdef _OPENMP
    return "OpenMP";
#else
    return "threads";
#endif
}

}  // namespace
}  // namespace lorasmith

// noconvert everywhere: nanobind would convert a strided or f64 output array silently, and the result would be lost.
NB_MODULE(_native, m) {
    using namespace nb::literals;
    m.doc() = "Blockwise kernels for the CPU; called by lorasmith.ops, which checks the arguments.";
    m.def("levels", &lorasmith::usable_levels, "Instruction sets that can be used here, best last.");
    m.def("threading", &lorasmith::threading, "What the kernels share the cores by: OpenMP or threads.");
    m.def("quantize_4bit", &lorasmith::quantize_4bit, "x"_a.noconvert(), "midpoints"_a.noconvert(),
          "order"_a.noconvert(), "packed"_a.noconvert(), "scales"_a.noconvert(), "blocksize"_a, "threads"_a, "level"_a);
    m.def("quantize_8bit", &lorasmith::quantize_8bit, "x"_a.noconvert(), "midpoints"_a.noconvert(),
          "order"_a.noconvert(), "codes"_a.noconvert(), "scales"_a.noconvert(), "blocksize"_a, "threads"_a);
    m.def("dequantize_4bit", &lorasmith::dequantize_4bit, "packed"_a.noconvert(), "scales"_a.noconvert(),
          "codebook"_a.noconvert(), "blocksize"_a, "nested_scales"_a.noconvert().none(),
          "nested_offset"_a.noconvert().none(), "nested_codebook"_a.noconvert().none(), "nested_blocksize"_a,
          "out"_a.noconvert(), "threads"_a, "level"_a);
    m.def("multiply_4bit", &lorasmith::multiply_4bit, "packed"_a.noconvert(), "scales"_a.noconvert(),
          "codebook"_a.noconvert(), "blocksize"_a, "nested_scales"_a.noconvert().none(),
          "nested_offset"_a.noconvert().none(), "nested_codebook"_a.noconvert().none(), "nested_blocksize"_a,
          "x"_a.noconvert(), "y"_a.noconvert(), "in_features"_a, "threads"_a, "level"_a);
    m.def("multiply_int8", &lorasmith::multiply_int8, "a"_a.noconvert(), "b"_a.noconvert(), "y"_a.noconvert(),
          "in_features"_a, "threads"_a, "level"_a);
    m.attr("most_skinny_rows") = lorasmith::kMostSkinnyRows;
}
