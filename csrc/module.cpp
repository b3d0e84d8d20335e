// The Python face of the kernels: checks sizes against each other, releases the GIL, chooses the instruction set.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "arrays.h"
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
using Array = Flat<T>;
using AnyArray = Flat<const void>;
using AnyOutput = Flat<void>;
using MaybeFloats = std::optional<Array<const float>>;

template <class A>
bool is_float(const A& array, int bits) {
    return array.dtype() == nb::dlpack::dtype{uint8_t(nb::dlpack::dtype_code::Float), uint8_t(bits), 1};
}

template <class A>
bool is_bfloat(const A& array) {
    return array.dtype() == nb::dlpack::dtype{uint8_t(nb::dlpack::dtype_code::Bfloat), 16, 1};
}

// The kernel for values in f32 or bf16.
template <class A, class Kernel>
Kernel of_type(const A& x, Kernel f32, Kernel bf16) {
    if (is_float(x, 32)) return f32;
    if (is_bfloat(x)) return bf16;
    throw std::invalid_argument("values are neither float32 nor bfloat16");
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class A>
void check_size(const A& array, int64_t size, const char* name) {
    if (array.size() == size) return;
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.size()) + " elements, not " +
                                std::to_string(size));
}

void check_blocksize(int64_t blocksize) {
    if (blocksize <= 0 || blocksize % 32 != 0) throw std::invalid_argument("blocksize is not a multiple of 32");
}

void quantize_4bit(AnyArray x, Array<const float> midpoints, Array<const uint8_t> order, Array<uint8_t> packed,
                   Array<float> scales, int64_t blocksize, int threads, const std::string& level) {
    const int64_t n = x.size();
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
    const int64_t n = x.size();
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
                               nested_blocksize, out.size());
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

// A product of x [rows, in_features] that gives y [rows, out_features], both flat; what is stored and y are the
// caller's.
Skinny skinny_of(const AnyArray& x, int64_t results, int64_t in_features) {
    if (in_features < 32 || in_features % 32 != 0) throw std::invalid_argument("in_features is not a multiple of 32");
    Skinny s{};
    s.rows = x.size() / in_features;
    s.in_features = in_features;
    if (s.rows < 1 || s.rows > kMostSkinnyRows) throw std::invalid_argument("x has no row, or too many");
    s.out_features = results / s.rows;
    check_size(x, s.rows * in_features, "x");
    return s;
}

void multiply(Skinny s, const AnyArray& x, int threads, const SkinnyKernels& kernels) {
    const auto arrange = of_type(x, kernels.arrange_f32, kernels.arrange_bf16);
    std::vector<float> arranged(size_t(s.rows * s.in_features));
    arrange(s, x.data(), arranged.data());
    s.x = arranged.data();
    for_ranges(s.out_features, kElementsPerThread / s.in_features, threads,
               [&](int64_t first, int64_t last) { kernels.multiply(s, first, last); });
}

// y [rows, out_features] = x [rows, in_features] W^T, all flat.
void multiply_4bit(Array<const uint8_t> packed, AnyArray scales, Array<const float> codebook, int64_t blocksize,
                   MaybeFloats nested_scales, MaybeFloats nested_offset, MaybeFloats nested_codebook,
                   int64_t nested_blocksize, AnyArray x, Array<float> y, int64_t in_features, int threads,
                   const std::string& level) {
    Skinny s = skinny_of(x, y.size(), in_features);
    check_size(y, s.rows * s.out_features, "y");
    s.stored = stored_4bit(packed, scales, codebook, blocksize, nested_scales, nested_offset, nested_codebook,
                           nested_blocksize, s.out_features * in_features);
    s.y = y.data();
    const SkinnyKernels kernels = skinny_at(level);
    const nb::gil_scoped_release released;
    multiply(s, x, threads, kernels);
}

// Rows below which a second thread costs more than it saves.
int64_t rows_per_thread(int64_t columns) { return ceil_div(kElementsPerThread, columns > 0 ? columns : 1); }

// kernel(arguments, first, last) on ranges of rows, without the GIL.
template <class Kernel, class Arguments>
void over_rows(Kernel kernel, const Arguments& arguments, int64_t rows, int64_t columns, int threads) {
    const nb::gil_scoped_release released;
    for_ranges(rows, rows_per_thread(columns), threads,
               [&](int64_t first, int64_t last) { kernel(arguments, first, last); });
}

std::vector<float> transpose(const float* matrix, int64_t rows, int64_t columns) {
    std::vector<float> turned(size_t(rows * columns));
    for (int64_t column = 0; column < columns; ++column) {
        float* out = turned.data() + column * rows;
        for (int64_t row = 0; row < rows; ++row) out[row] = matrix[row * columns + column];
    }
    return turned;
}

// h [N, R] = scale * x [N, F] a [R, F]^T, all flat.
void low_rank_project(AnyArray x, Array<const float> a, float scale, Array<float> h, int64_t rank, int threads,
                      const std::string& level) {
    const int64_t rows = h.size() / rank, features = a.size() / rank;
    check_size(a, rank * features, "a");
    check_size(h, rows * rank, "h");
    check_size(x, rows * features, "x");
    const LowRankKernels kernels = low_rank_at(level);
    const auto kernel = of_type(x, kernels.project_f32, kernels.project_bf16);
    const Project p{x.data(), a.data(), h.data(), features, rank, scale};
    over_rows(kernel, p, rows, features, threads);
}

// out [N, F] = y [N, F] + h [N, R] b [R, F], all flat; out may be y. transposed: b lies as [F, R], as LoRA's B is
// stored.
void low_rank_add(AnyArray y, Array<const float> h, Array<const float> b, AnyOutput out, int64_t rank, bool transposed,
                  int threads, const std::string& level) {
    const int64_t rows = h.size() / rank, features = b.size() / rank;
    check_size(h, rows * rank, "h");
    check_size(b, rank * features, "b");
    check_size(y, rows * features, "y");
    check_size(out, rows * features, "out");
    const LowRankKernels kernels = low_rank_at(level);
    if (!is_float(out, 32) && !is_bfloat(out)) throw std::invalid_argument("out is neither float32 nor bfloat16");
    if (is_bfloat(y) && !is_bfloat(out)) throw std::invalid_argument("y is bfloat16 and out is float32");
    const auto kernel = of_type(y, is_bfloat(out) ? kernels.add_f32_bf16 : kernels.add_f32_f32, kernels.add_bf16_bf16);
    std::vector<float> turned;
    if (transposed) turned = transpose(b.data(), features, rank);
    const float* factor = transposed ? turned.data() : b.data();
    const AddUpdate u{y.data(), h.data(), factor, out.data(), features, rank};
    over_rows(kernel, u, rows, features, threads);
}

// out [rows, O] = x [rows, I] W^T + bias [O] + scale x a [R, I]^T b [O, R]^T, all flat; out f32 or bf16.
void adapted_4bit(Array<const uint8_t> packed, AnyArray scales, Array<const float> codebook, int64_t blocksize,
                  MaybeFloats nested_scales, MaybeFloats nested_offset, MaybeFloats nested_codebook,
                  int64_t nested_blocksize, AnyArray x, MaybeFloats bias, Array<const float> a, Array<const float> b,
                  float scale, AnyOutput out, int64_t in_features, int threads, const std::string& level) {
    Skinny s = skinny_of(x, out.size(), in_features);
    check_size(out, s.rows * s.out_features, "out");
    s.stored = stored_4bit(packed, scales, codebook, blocksize, nested_scales, nested_offset, nested_codebook,
                           nested_blocksize, s.out_features * in_features);
    const int64_t rank = a.size() / in_features;
    check_size(a, rank * in_features, "a");
    check_size(b, rank * s.out_features, "b");
    if (bias) check_size(*bias, s.out_features, "bias");
    const SkinnyKernels kernels = skinny_at(level);
    const LowRankKernels thin = low_rank_at(level);
    const auto project = of_type(x, thin.project_f32, thin.project_bf16);
    const auto add = of_type(out, thin.add_f32_f32, thin.add_f32_bf16);
    const nb::gil_scoped_release released;
    std::vector<float> y(size_t(s.rows * s.out_features)), h(size_t(s.rows * rank));
    s.y = y.data();
    multiply(s, x, threads, kernels);
    for (int64_t i = 0; bias && i < int64_t(y.size()); ++i) y[size_t(i)] += bias->data()[i % s.out_features];
    // a few rows, which one thread does sooner than it wakes another
    project({x.data(), a.data(), h.data(), in_features, rank, scale}, 0, s.rows);
    const std::vector<float> turned = transpose(b.data(), s.out_features, rank);
    add({y.data(), h.data(), turned.data(), out.data(), s.out_features, rank}, 0, s.rows);
}

// out [R, F] = h [N, R]^T x [N, F], all flat.
void low_rank_outer(Array<const float> h, AnyArray x, Array<float> out, int64_t rank, int threads,
                    const std::string& level) {
    const int64_t rows = h.size() / rank, features = out.size() / rank;
    check_size(h, rows * rank, "h");
    check_size(x, rows * features, "x");
    check_size(out, rank * features, "out");
    const LowRankKernels kernels = low_rank_at(level);
    const auto kernel = of_type(x, kernels.outer_f32, kernels.outer_bf16);
    const Outer o{x.data(), h.data(), out.data(), rows, features, rank};
    const nb::gil_scoped_release released;
    // whole cache lines of eight floats and more to each thread
    for_ranges(ceil_div(features, 64), kElementsPerThread / (64 * (rows + 1)), threads,
               [&](int64_t first, int64_t last) { kernel(o, 64 * first, std::min(64 * last, features)); });
}

using Rows = nb::ndarray<nb::ndim<2>, nb::device::cpu>;
using ReadRows = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;

// Whether the values are bf16; both arrays have one type, f32 or bf16, and one shape, and their rows are unbroken.
template <class A, class B>
bool check_like(const A& array, const B& like, const char* name) {
    const bool narrow = is_bfloat(like);
    if (!narrow && !is_float(like, 32)) throw std::invalid_argument("values are neither float32 nor bfloat16");
    if (array.dtype() != like.dtype() || array.shape(0) != like.shape(0) || array.shape(1) != like.shape(1)) {
        throw std::invalid_argument(std::string(name) + " has another type or shape");
    }
    if (array.shape(1) > 1 && array.stride(1) != 1) throw std::invalid_argument(std::string(name) + " has broken rows");
    return narrow;
}

template <class A>
void check_whole(const A& array, const char* name) {
    if (array.shape(0) > 1 && array.stride(0) != int64_t(array.shape(1)))
        throw std::invalid_argument(std::string(name) + " has gaps");
}

Norm norm_of(const ReadRows& x, const AnyArray& weight, const Array<float>& rms, const Rows& out, bool plus_one,
             bool rounds_first) {
    check_like(out, x, "out");
    check_like(x, x, "x");
    check_whole(x, "x");
    check_whole(out, "out");
    check_size(weight, int64_t(x.shape(1)), "weight");
    check_size(rms, int64_t(x.shape(0)), "rms");
    if (weight.dtype() != x.dtype()) throw std::invalid_argument("weight is not of x's type");
    Norm n{};
    n.x = x.data();
    n.weight = weight.data();
    n.rms = rms.data();
    n.out = out.data();
    n.columns = int64_t(x.shape(1));
    n.offset = plus_one ? 1.0f : 0.0f;
    n.rounds_first = rounds_first;
    return n;
}

void rms_norm(ReadRows x, AnyArray weight, Array<float> rms, Rows out, float eps, bool plus_one, bool rounds_first,
              int threads, const std::string& level) {
    Norm n = norm_of(x, weight, rms, out, plus_one, rounds_first);
    n.eps = eps;
    const NormGateKernels kernels = norm_gate_at(level);
    const NormRows kernel = of_type(x, kernels.norm_f32, kernels.norm_bf16);
    over_rows(kernel, n, int64_t(x.shape(0)), n.columns, threads);
}

// grad_weight [parts, columns] gets the sums of as many parts of the rows, and has no parts where nobody asks.
void rms_norm_backward(ReadRows grad, ReadRows x, AnyArray weight, Array<float> rms, Rows out,
                       nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> grad_weight, bool plus_one,
                       bool rounds_first, int threads, const std::string& level) {
    Norm n = norm_of(x, weight, rms, out, plus_one, rounds_first);
    check_like(grad, x, "grad");
    check_whole(grad, "grad");
    n.grad = grad.data();
    const int64_t parts = int64_t(grad_weight.shape(0)), rows = int64_t(x.shape(0));
    if (parts > 0 && int64_t(grad_weight.shape(1)) != n.columns)
        throw std::invalid_argument("grad_weight is too short");
    const NormGateKernels kernels = norm_gate_at(level);
    const NormRows kernel = of_type(x, kernels.norm_backward_f32, kernels.norm_backward_bf16);
    if (parts == 0) {
        over_rows(kernel, n, rows, n.columns, threads);
        return;
    }
    const nb::gil_scoped_release released;
    for_ranges(parts, 1, threads, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) {
            Norm own = n;
            own.grad_weight = grad_weight.data() + part * n.columns;
            kernel(own, rows * part / parts, rows * (part + 1) / parts);
        }
    });
}

// Fills losses [rows] and, where gradient is true, logits [rows, columns] with the gradient to them.
void token_loss(Rows logits, Array<const int64_t> labels, MaybeFloats weights, Array<float> losses, float scale,
                float softcap, float smoothing, float z_loss, bool gradient, int threads, const std::string& level) {
    const int64_t rows = int64_t(logits.shape(0)), columns = int64_t(logits.shape(1));
    check_like(logits, logits, "logits");
    check_whole(logits, "logits");
    check_size(labels, rows, "labels");
    check_size(losses, rows, "losses");
    if (weights.has_value()) check_size(*weights, rows, "weights");
    for (int64_t row = 0; row < rows; ++row) {
        if (labels.data()[row] < 0 || labels.data()[row] >= columns)
            throw std::invalid_argument("a label is not one of the columns");
    }
    const TokenLossKernels kernels = token_loss_at(level);
    const TokenLossRows kernel = of_type(logits, kernels.f32, kernels.bf16);
    const float* const weight = weights.has_value() ? weights->data() : nullptr;
    const TokenLoss t{logits.data(), labels.data(), weight,    losses.data(), columns,
                      scale,         softcap,       smoothing, z_loss,        gradient};
    over_rows(kernel, t, rows, columns, threads);
}

Gated gated_of(const ReadRows& gate, const ReadRows& up, const std::string& function) {
    check_like(gate, gate, "gate");
    check_like(up, gate, "up");
    Gated g{};
    g.gate = gate.data();
    g.up = up.data();
    g.columns = int64_t(gate.shape(1));
    g.gate_stride = gate.stride(0);
    g.up_stride = up.stride(0);
    if (function != "silu" && function != "gelu_tanh") throw std::invalid_argument("unknown activation");
    g.function = function == "silu" ? Gate::kSilu : Gate::kGeluTanh;
    return g;
}

void gated_activation(ReadRows gate, ReadRows up, Rows out, const std::string& function, int threads,
                      const std::string& level) {
    Gated g = gated_of(gate, up, function);
    check_like(out, gate, "out");
    check_whole(out, "out");
    g.out = out.data();
    const NormGateKernels kernels = norm_gate_at(level);
    const GatedRows kernel = of_type(gate, kernels.gated_f32, kernels.gated_bf16);
    over_rows(kernel, g, int64_t(gate.shape(0)), g.columns, threads);
}

void gated_activation_backward(ReadRows grad, ReadRows gate, ReadRows up, Rows grad_gate, Rows grad_up,
                               const std::string& function, int threads, const std::string& level) {
    Gated g = gated_of(gate, up, function);
    check_like(grad, gate, "grad");
    check_whole(grad, "grad");
    check_like(grad_gate, gate, "grad_gate");
    check_like(grad_up, gate, "grad_up");
    g.grad = grad.data();
    g.grad_gate = grad_gate.data();
    g.grad_up = grad_up.data();
    g.grad_gate_stride = grad_gate.stride(0);
    g.grad_up_stride = grad_up.stride(0);
    const NormGateKernels kernels = norm_gate_at(level);
    const GatedRows kernel = of_type(gate, kernels.gated_backward_f32, kernels.gated_backward_bf16);
    over_rows(kernel, g, int64_t(gate.shape(0)), g.columns, threads);
}

// y [rows, out_features] = x [rows, in_features] weight [out_features, in_features]^T, all flat; weight is bf16.
void multiply_narrow(Array<const float> x, AnyArray weight, Array<float> y, int64_t in_features, int threads,
                     const std::string& level) {
    if (in_features < 1) throw std::invalid_argument("in_features is not positive");
    if (!is_bfloat(weight)) throw std::invalid_argument("weight is not bfloat16");
    const int64_t rows = x.size() / in_features, out_features = weight.size() / in_features;
    check_size(x, rows * in_features, "x");
    check_size(weight, out_features * in_features, "weight");
    check_size(y, rows * out_features, "y");
    const Narrow p{x.data(), static_cast<const bf16*>(weight.data()), y.data(), rows, out_features, in_features};
    const auto multiply = multiply_narrow_at(level);
    const nb::gil_scoped_release released;
    for_ranges(out_features, ceil_div(kElementsPerThread, in_features), threads,
               [&](int64_t first, int64_t last) { multiply(p, first, last); });
}

// y [rows, columns] = a [rows, in_features] b [columns, in_features]^T, all flat.
void multiply_int8(Array<const int8_t> a, Array<const int8_t> b, Array<int32_t> y, int64_t in_features, int threads,
                   const std::string& level) {
    if (in_features < 1) throw std::invalid_argument("in_features is not positive");
    const int64_t rows = a.size() / in_features, columns = b.size() / in_features;
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
    lorasmith::torch_tensors.find();
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
    m.def("adapted_4bit", &lorasmith::adapted_4bit, "packed"_a.noconvert(), "scales"_a.noconvert(),
          "codebook"_a.noconvert(), "blocksize"_a, "nested_scales"_a.noconvert().none(),
          "nested_offset"_a.noconvert().none(), "nested_codebook"_a.noconvert().none(), "nested_blocksize"_a,
          "x"_a.noconvert(), "bias"_a.noconvert().none(), "a"_a.noconvert(), "b"_a.noconvert(), "scale"_a,
          "out"_a.noconvert(), "in_features"_a, "threads"_a, "level"_a);
    m.def("low_rank_project", &lorasmith::low_rank_project, "x"_a.noconvert(), "a"_a.noconvert(), "scale"_a,
          "h"_a.noconvert(), "rank"_a, "threads"_a, "level"_a);
    m.def("low_rank_add", &lorasmith::low_rank_add, "y"_a.noconvert(), "h"_a.noconvert(), "b"_a.noconvert(),
          "out"_a.noconvert(), "rank"_a, "transposed"_a, "threads"_a, "level"_a);
    m.def("low_rank_outer", &lorasmith::low_rank_outer, "h"_a.noconvert(), "x"_a.noconvert(), "out"_a.noconvert(),
          "rank"_a, "threads"_a, "level"_a);
    m.def("rms_norm", &lorasmith::rms_norm, "x"_a.noconvert(), "weight"_a.noconvert(), "rms"_a.noconvert(),
          "out"_a.noconvert(), "eps"_a, "plus_one"_a, "rounds_first"_a, "threads"_a, "level"_a);
    m.def("rms_norm_backward", &lorasmith::rms_norm_backward, "grad"_a.noconvert(), "x"_a.noconvert(),
          "weight"_a.noconvert(), "rms"_a.noconvert(), "out"_a.noconvert(), "grad_weight"_a.noconvert(), "plus_one"_a,
          "rounds_first"_a, "threads"_a, "level"_a);
    m.def("token_loss", &lorasmith::token_loss, "logits"_a.noconvert(), "labels"_a.noconvert(),
          "weights"_a.noconvert().none(), "losses"_a.noconvert(), "scale"_a, "softcap"_a, "smoothing"_a, "z_loss"_a,
          "gradient"_a, "threads"_a, "level"_a);
    m.def("gated_activation", &lorasmith::gated_activation, "gate"_a.noconvert(), "up"_a.noconvert(),
          "out"_a.noconvert(), "function"_a, "threads"_a, "level"_a);
    m.def("gated_activation_backward", &lorasmith::gated_activation_backward, "grad"_a.noconvert(),
          "gate"_a.noconvert(), "up"_a.noconvert(), "grad_gate"_a.noconvert(), "grad_up"_a.noconvert(), "function"_a,
          "threads"_a, "level"_a);
    m.def("multiply_narrow", &lorasmith::multiply_narrow, "x"_a.noconvert(), "weight"_a.noconvert(), "y"_a.noconvert(),
          "in_features"_a, "threads"_a, "level"_a);
    m.def("multiply_int8", &lorasmith::multiply_int8, "a"_a.noconvert(), "b"_a.noconvert(), "y"_a.noconvert(),
          "in_features"_a, "threads"_a, "level"_a);
    m.attr("most_skinny_rows") = lorasmith::kMostSkinnyRows;
}
