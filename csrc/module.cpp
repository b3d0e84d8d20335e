// The Python face of the kernels: checks sizes against each other, releases the GIL, chooses the instruction set.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
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

void dequantize_blocks(Dequantize d, AnyOutput& out, int threads, const std::string& level) {
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

Dequantize check_packed(const Array<const uint8_t>& packed, const Array<const float>& codebook, int64_t blocksize,
                        const AnyOutput& out) {
    check_blocksize(blocksize);
    check_size(codebook, 16, "codebook");
    Dequantize d{};
    d.n = int64_t(out.shape(0));
    check_size(packed, ceil_div(d.n, 2), "packed");
    d.packed = packed.data();
    d.codebook = codebook.data();
    d.blocksize = blocksize;
    return d;
}

void dequantize_4bit(Array<const uint8_t> packed, Array<const float> scales, Array<const float> codebook,
                     int64_t blocksize, AnyOutput out, int threads, const std::string& level) {
    Dequantize d = check_packed(packed, codebook, blocksize, out);
    check_size(scales, ceil_div(d.n, blocksize), "scales");
    d.scales = scales.data();
    dequantize_blocks(d, out, threads, level);
}

void dequantize_4bit_nested(Array<const uint8_t> packed, Array<const uint8_t> scale_codes, Array<const float> codebook,
                            int64_t blocksize, Array<const float> nested_scales, Array<const float> nested_offset,
                            Array<const float> nested_codebook, int64_t nested_blocksize, AnyOutput out, int threads,
                            const std::string& level) {
    Dequantize d = check_packed(packed, codebook, blocksize, out);
    const int64_t blocks = ceil_div(d.n, blocksize);
    check_blocksize(nested_blocksize);
    check_size(scale_codes, blocks, "scale_codes");
    check_size(nested_scales, ceil_div(blocks, nested_blocksize), "nested_scales");
    check_size(nested_offset, 1, "nested_offset");
    check_size(nested_codebook, 256, "nested_codebook");
    d.scale_codes = scale_codes.data();
    d.nested_scales = nested_scales.data();
    d.nested_offset = nested_offset.data()[0];
    d.nested_codebook = nested_codebook.data();
    d.nested_blocksize = nested_blocksize;
    dequantize_blocks(d, out, threads, level);
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
          "codebook"_a.noconvert(), "blocksize"_a, "out"_a.noconvert(), "threads"_a, "level"_a);
    m.def("dequantize_4bit_nested", &lorasmith::dequantize_4bit_nested, "packed"_a.noconvert(),
          "scale_codes"_a.noconvert(), "codebook"_a.noconvert(), "blocksize"_a, "nested_scales"_a.noconvert(),
          "nested_offset"_a.noconvert(), "nested_codebook"_a.noconvert(), "nested_blocksize"_a, "out"_a.noconvert(),
          "threads"_a, "level"_a);
}
