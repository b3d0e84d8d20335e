"""The adapted linear step against its formula, on every storage of the frozen weight."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.formats import dynamic_map, formats
from lorasmith.ops import precision

NF4 = formats["nf4"].codebook("cpu")
ROWS, IN, OUT = 6, 96, 40


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def dense():
    weight = seeded(OUT, IN)
    return ops.DenseProduct(weight), weight


def dense_in_16_bits():
    weight = seeded(OUT, IN).bfloat16()
    return ops.DenseProduct(weight), weight.float()


def blockwise():
    packed, scales = ops.quantize_blockwise(seeded(OUT, IN), NF4, 64)
    stored = (packed, scales, NF4, 64, (OUT, IN), None, None, None, 256)
    return ops.BlockwiseProduct(stored), ops.dequantize_blockwise(*stored[:5], torch.float32)


PRODUCTS = [dense, dense_in_16_bits, blockwise]


def updates(ranks=(4, 9), dropout=0.0, dtype=torch.float32):
    made = [(seeded(rank, IN).to(dtype), seeded(OUT, rank).to(dtype), 0.5 * rank) for rank in ranks]
    return [ops.LowRank(a.requires_grad_(), b.requires_grad_(), s, dropout) for a, b, s in made]


def formula(x, weight, bias, low_rank):
    return F.linear(x, weight, bias) + sum(u.scaling * x @ u.a.T @ u.b.T for u in low_rank)


def leaves(x, bias, low_rank):
    return [x, bias, *(factor for update in low_rank for factor in (update.a, update.b))]


@pytest.mark.parametrize("make", PRODUCTS)
@pytest.mark.parametrize("ranks", [(), (1,), (4, 9)])
def test_values_and_gradients_are_those_of_the_formula(make, ranks):
    product, weight = make()
    x, bias, low_rank = seeded(2, ROWS, IN).requires_grad_(), seeded(OUT).requires_grad_(), updates(ranks)
    y, expected = ops.adapted_linear(x, product, bias, low_rank), formula(x, weight, bias, low_rank)
    # f32 sums of some hundred products in another order
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-5)
    weights = seeded(*y.shape)
    inputs = leaves(x, bias, low_rank)
    ours = torch.autograd.grad((y * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-5)


def test_gradients_agree_with_finite_differences():
    weight = seeded(3, 5).double()
    a, b, x = (seeded(*shape).double().requires_grad_() for shape in [(2, 5), (3, 2), (4, 5)])
    step = lambda x, a, b: ops.adapted_linear(x, ops.DenseProduct(weight), None, [ops.LowRank(a, b, 0.7)])  # noqa: E731
    assert torch.autograd.gradcheck(step, (x, a, b))


@pytest.mark.parametrize("make", PRODUCTS)
def test_dropout_falls_on_the_update_alone_and_is_the_same_in_the_backward(make):
    product, weight = make()
    x, low_rank = seeded(ROWS, IN).requires_grad_(), updates((4,), dropout=0.5)
    (update,) = low_rank
    torch.manual_seed(3)
    y = ops.adapted_linear(x, product, None, low_rank)
    torch.manual_seed(3)
    kept = F.dropout(x, 0.5)
    expected = F.linear(x, weight) + update.scaling * kept @ update.a.T @ update.b.T
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-5)
    inputs = [x, update.a, update.b]
    ours = torch.autograd.grad(y.square().sum(), inputs)
    for mine, other in zip(ours, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("instructions", [False, True])
@pytest.mark.parametrize("make", PRODUCTS)
def test_16_bit_inputs_give_16_bit_results_with_and_without_instructions_for_them(make, instructions, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: instructions)
    product, weight = make()
    x, low_rank = seeded(ROWS, IN).bfloat16().requires_grad_(), updates((4,))
    y = ops.adapted_linear(x, product, None, low_rank)
    expected = formula(x.float(), weight, None, low_rank)
    assert y.dtype == torch.bfloat16
    # each of some roundings to 8 bits is at most 2**-9 of the largest sum
    torch.testing.assert_close(y.float(), expected, atol=float(expected.detach().abs().max()) * 2**-6, rtol=0)
    grad_x, grad_a = torch.autograd.grad(y.float().sum(), [x, low_rank[0].a])
    assert (grad_x.dtype, grad_a.dtype) == (torch.bfloat16, torch.float32)


def test_without_instructions_16_bit_products_round_only_their_result(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: False)
    product, weight = blockwise()
    x, low_rank = seeded(ROWS, IN).bfloat16(), updates((4,))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.adapted_linear(x, product, None, low_rank)
    expected = formula(x.float(), weight, None, low_rank)
    # half a unit in the last of 8 bits, and f32's own rounding
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-3)


def test_layers_that_read_the_same_input_keep_it_once():
    x, kept = seeded(ROWS, IN).requires_grad_(), {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    shared = x * 1.0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        low_rank = updates((4,))
        # alive until counted: what a dropped result kept would be freed, and its address used again
        results = [ops.adapted_linear(shared, blockwise()[0], None, low_rank) for _ in range(3)]
    assert all(y.requires_grad for y in results)
    factors = sum(4 * factor.numel() for factor in (low_rank[0].a, low_rank[0].b))
    assert sum(kept.values()) == 4 * (x.numel() + 3 * ROWS * 4) + factors


def test_updates_that_do_not_train_keep_no_input_and_still_let_gradients_through():
    x, low_rank, kept = seeded(ROWS, IN).requires_grad_(), updates((4,)), []
    frozen = [ops.LowRank(update.a.detach(), update.b.detach(), update.scaling) for update in low_rank]
    product, weight = blockwise()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        y = ops.adapted_linear(x * 1.0, product, None, frozen)
    assert (ROWS, IN) not in kept
    (gradient,) = torch.autograd.grad(y.sum(), [x])
    (expected,) = torch.autograd.grad(formula(x, weight, None, frozen).sum(), [x])
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-5)


def test_autocast_sets_the_dtype_of_the_result():
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.adapted_linear(seeded(ROWS, IN), dense()[0], seeded(OUT), updates((4,)))
    assert y.dtype == torch.bfloat16


def test_an_empty_batch_gives_an_empty_result_and_zero_gradients():
    x, low_rank = torch.empty(0, IN, requires_grad=True), updates((4,))
    y = ops.adapted_linear(x, blockwise()[0], None, low_rank)
    assert y.shape == (0, OUT)
    (gradient,) = torch.autograd.grad(y.sum(), [low_rank[0].a])
    assert not gradient.any()


def test_an_update_that_does_not_fit_is_refused():
    with pytest.raises(FormatError, match=r"A \[4, 96\] and B \[40, 4\] does not fit x \[6, 95\]"):
        ops.adapted_linear(seeded(ROWS, IN - 1), dense()[0], None, updates((4,)))


def test_only_a_cpu_without_instructions_widens_16_bit_types(monkeypatch):
    cpu, other = torch.device("cpu"), torch.device("meta")
    for instructions, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "bfloat16_instructions", lambda answer=instructions: answer)
        assert precision.product_dtype(torch.bfloat16, cpu) == expected
    assert precision.product_dtype(torch.bfloat16, other) == torch.bfloat16
    assert precision.product_dtype(torch.float64, cpu) == torch.float64
    assert precision.product_dtype(torch.float16, cpu) == torch.float32


@pytest.mark.parametrize("rows", [(1,), (1, 1), (4, 1), (3, 5), (17,), (0,)])
@pytest.mark.parametrize("rank, shape", [(1, (33, 1024)), (8, (7, 64)), (32, (48, 96)), (40, (5, 288)), (8, (6, 33))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
def test_without_gradients_an_adapted_layer_is_the_same(native_kernels, rows, rank, shape, dtype, biased):
    generator = torch.Generator().manual_seed(0)
    codebook, maps = formats["nf4"].codebook("cpu"), dynamic_map()
    packed, scales = ops.quantize_blockwise(torch.randn(*shape, generator=generator), codebook, 64)
    codes, nested_scales, offset = ops.double_quantize(scales)
    stored = (packed, codes, codebook, 64, shape, nested_scales, offset, maps, 256)
    x = torch.randn(*rows, shape[1], generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype) if biased else None
    a, b = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
    weight = ops.dequantize_blockwise(*stored[:5], torch.float32, nested=ops.Nested(nested_scales, offset, maps))
    exact = F.linear(x.double(), weight.double() + 0.5 * b.double() @ a.double())
    exact = exact if bias is None else exact + bias.double()
    with torch.no_grad():
        y = ops.adapted_linear(x, ops.BlockwiseProduct(stored), bias, [ops.LowRank(a, b, 0.5)])
    assert y.dtype == dtype
    assert y.shape == (*rows, shape[0])
    # f32 sums of 1,024 products of up to 32 factors, and one rounding of 16 bits
    torch.testing.assert_close(y.double(), exact, atol=1e-3, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5)


# one row and few, whose columns are split between programs; and more than the kernels take
@pytest.mark.parametrize("rows, rank", [((1, 1), 9), ((2, 3), 17), ((33,), 8)])
@pytest.mark.parametrize("dtype, factors", [(torch.float32, torch.float32), (torch.bfloat16, torch.float16)])
def test_tritons_adapted_layer_is_the_formula(rows, rank, dtype, factors):
    generator = torch.Generator().manual_seed(rank)
    packed, scales = ops.quantize_blockwise(torch.randn(21, 512, generator=generator), NF4, 64)
    stored = (packed, scales, NF4, 64, (21, 512), None, None, None, 256)
    x, bias = torch.randn(*rows, 512, generator=generator).to(dtype), torch.randn(21, generator=generator).to(dtype)
    a = torch.randn(512, rank, generator=generator).to(factors).T
    b = torch.randn(rank, 21, generator=generator).to(factors).T
    y = triton_kernels("adapted_blockwise").adapted_blockwise_linear(x, bias, a, b, 0.5, *stored)
    weight = ops.dequantize_blockwise(*stored[:5], torch.float32)
    expected = F.linear(x.float(), weight + 0.5 * b.float() @ a.float(), bias.float())
    assert y.dtype == dtype
    # f32 sums of 512 products of up to 17 factors; in 16 bits the weight and the result are rounded
    atol = 1e-3 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(y.float(), expected, atol=atol, rtol=2**-8)


def test_the_one_step_without_gradients_suits_torchs_dispatcher(native_kernels):
    codebook = formats["nf4"].codebook("cpu")
    packed, scales = ops.quantize_blockwise(torch.randn(7, 64), codebook, 64)
    stored = (packed, scales, codebook, 64, (7, 64), None, None, None, 256)
    arguments = (torch.randn(2, 1, 64), torch.randn(7), torch.randn(8, 64), torch.randn(7, 8), 0.5, *stored)
    torch.library.opcheck(torch.ops.lorasmith.adapted_blockwise_linear.default, arguments)


# --- gains, gates, and updates with rows of their own

EVERY_OTHER = torch.tensor([1, 3, 5])


def part(values, rows):
    return values if rows is None else values[rows]


def plainly(x, weight, bias, low_rank):
    """The formula once more, in operations that autograd knows, for updates with rows, gates and gains."""
    y = F.linear(x, weight)
    for u in low_rank:
        h = u.scaling * part(x, u.rows) @ u.a.T
        h = h if u.gate is None else h * u.gate
        changed = part(y, u.rows) + h @ u.b.T
        changed = changed if u.gain is None else changed * u.gain
        y = changed if u.rows is None else y.index_put((torch.arange(len(x))[u.rows],), changed)
    return y if bias is None else y + bias


def made(rank, **fields):
    a, b = seeded(rank, IN).double().requires_grad_(), seeded(OUT, rank).double().requires_grad_()
    return ops.LowRank(a, b, 0.5 * rank, **fields)


def gain(*shape):
    return (1 + 0.3 * seeded(*shape)).double().requires_grad_()


VARIED = {
    "a gain": lambda: [made(4, gain=gain(OUT))],
    "a gain that is zero somewhere": lambda: [made(4, gain=torch.arange(OUT).double().requires_grad_())],
    "a gain for each row": lambda: [made(4, gain=gain(ROWS, OUT))],
    "a gain that does not train": lambda: [made(4, gain=gain(OUT).detach())],
    "a gate": lambda: [made(5, gate=seeded(ROWS, 5).double())],
    "a gate and a gain": lambda: [made(5, gate=seeded(ROWS, 5).double(), gain=gain(ROWS, OUT))],
    "a run of rows": lambda: [made(4, rows=slice(1, 4))],
    "numbered rows": lambda: [made(4, rows=EVERY_OTHER)],
    "rows that share nothing": lambda: [
        made(4, rows=slice(0, 1)),
        made(3, rows=torch.tensor([5, 2]), gain=gain(OUT)),
        made(2, rows=slice(3, 5), gain=gain(OUT)),
    ],
    "rows of one update in those of another": lambda: [made(4), made(3, rows=EVERY_OTHER)],
    "no rows": lambda: [made(4, rows=slice(2, 2), gain=gain(OUT))],
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("varied", VARIED)
def test_gains_gates_and_rows_are_those_of_the_formula_with_their_gradients(varied, biased):
    weight, x = seeded(OUT, IN).double(), seeded(ROWS, IN).double().requires_grad_()
    bias, low_rank = seeded(OUT).double().requires_grad_() if biased else None, VARIED[varied]()
    y, expected = ops.adapted_linear(x, ops.DenseProduct(weight), bias, low_rank), plainly(x, weight, bias, low_rank)
    torch.testing.assert_close(y, expected, atol=1e-11, rtol=1e-11)
    tensors = [x, bias, *(tensor for u in low_rank for tensor in (u.a, u.b, u.gain))]
    trained = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    weights = seeded(*y.shape).double()
    ours = torch.autograd.grad((y * weights).sum(), trained)
    for mine, other in zip(ours, torch.autograd.grad((expected * weights).sum(), trained), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(ops.adapted_linear(x, ops.DenseProduct(weight), bias, low_rank), expected)


@pytest.mark.parametrize("make", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_gain_serves_every_storage_with_and_without_gradients(make, dtype, biased):
    product, weight = make()
    (update,) = updates((4,))
    update = ops.LowRank(update.a, update.b, update.scaling, gain=gain(OUT).float())
    x, bias = seeded(ROWS, IN).to(dtype), seeded(OUT).to(dtype) if biased else None
    expected = plainly(x.float(), weight, None if bias is None else bias.float(), [update])
    trained = ops.adapted_linear(x, product, bias, [update])
    with torch.no_grad():
        generated = ops.adapted_linear(x, product, bias, [update])
    for y in (trained, generated):
        assert y.dtype == dtype
        # in 16 bits a sum, its product with the gain and the bias each round to 8 bits
        bound = 1e-3 if dtype == torch.float32 else float(expected.detach().abs().max()) * 2**-6
        torch.testing.assert_close(y.float(), expected, atol=bound, rtol=0)


def test_dropout_falls_on_an_updates_own_rows_alone():
    product, weight = dense()
    x, update = seeded(ROWS, IN).requires_grad_(), updates((4,))[0]
    update = ops.LowRank(update.a, update.b, update.scaling, dropout=0.5, rows=EVERY_OTHER)
    torch.manual_seed(3)
    y = ops.adapted_linear(x, product, None, [update])
    torch.manual_seed(3)
    kept = F.dropout(x[EVERY_OTHER], 0.5)
    expected = F.linear(x, weight).index_add(0, EVERY_OTHER, update.scaling * kept @ update.a.T @ update.b.T)
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-5)
    inputs = [x, update.a, update.b]
    ours = torch.autograd.grad(y.square().sum(), inputs)
    for mine, other in zip(ours, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-2, rtol=1e-4)


def test_the_sum_before_a_gain_is_kept_only_where_the_gain_trains():
    x, kept = seeded(ROWS, IN).requires_grad_(), []
    (update,) = updates((4,))
    for value, count in ((torch.ones(OUT), 0), (torch.ones(OUT, requires_grad=True), 1)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
            low_rank = [ops.LowRank(update.a, update.b, 1.0, gain=value)]
            assert ops.adapted_linear(x, dense()[0], None, low_rank).requires_grad
        assert kept.count((ROWS, OUT)) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gain": torch.ones(OUT + 1)}, r"a gain \[41\] does not fit B \[40, 4\]"),
        ({"gate": torch.ones(ROWS, 5)}, r"a gate \[6, 5\] does not fit A \[4, 96\]"),
    ],
)
def test_a_gain_or_gate_that_does_not_fit_is_refused(fields, message):
    (update,) = updates((4,))
    with pytest.raises(FormatError, match=message):
        ops.adapted_linear(seeded(ROWS, IN), dense()[0], None, [ops.LowRank(update.a, update.b, 1.0, **fields)])


def test_a_gain_beside_another_update_of_the_same_rows_is_refused():
    one, other = updates((4, 9))
    with pytest.raises(FormatError, match="rows of its own"):
        ops.adapted_linear(
            seeded(ROWS, IN), dense()[0], None, [one, ops.LowRank(other.a, other.b, 1.0, gain=torch.ones(OUT))]
        )


@pytest.mark.parametrize("make", PRODUCTS)
def test_a_frozen_start_is_taken_off_and_gets_no_gradient(make):
    product, weight = make()
    x, (update,) = seeded(ROWS, IN).requires_grad_(), updates((4,))
    start = (seeded(5, IN), seeded(OUT, 5))
    y = ops.adapted_linear(x, product, None, [replace(update, start=start)])
    expected = formula(x, weight, None, [update]) - update.scaling * x @ start[0].T @ start[1].T
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-5)
    inputs = [x, update.a, update.b]
    ours = torch.autograd.grad(y.square().sum(), inputs)
    for mine, other in zip(ours, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        # gradients of some ten thousand
        torch.testing.assert_close(mine, other, atol=0.1, rtol=1e-4)
    with torch.no_grad():
        without = ops.adapted_linear(x, product, None, [replace(update, start=start)])
    torch.testing.assert_close(without, expected, atol=1e-3, rtol=1e-5)
