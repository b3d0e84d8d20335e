"""The linear layer on stored blocks: values, gradients, and a scratch buffer that is never seen from outside."""

import threading
from importlib import import_module

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpu_kernels import DEVICE, triton_kernels
from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.formats import dynamic_map, formats
from lorasmith.ops import scratch
from lorasmith.ops.blockwise_linear.packed import Update
from lorasmith.ops.gpu import tuned
from stored import stored_weight

NF4 = formats["nf4"].codebook("cpu")
# the first four fall to the panel on AVX2 with any rows, the others only with more than four
SHAPES = [
    ((7, 32), 64),
    ((48, 96), 64),
    ((5, 288), 256),
    ((33, 1024), 32),
    ((33, 1024), 64),
    ((7, 320), 256),
    ((5, 576), 128),
]


class Stored:
    """A weight [out, in] in NF4 with nested scales, and its dense value."""

    def __init__(self, out_features=48, in_features=96, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(out_features, in_features, generator=generator)
        self.shape = (out_features, in_features)
        self.packed, scales = ops.quantize_blockwise(weight, NF4, 64)
        self.codes, nested_scales, offset = ops.double_quantize(scales)
        self.nested = ops.Nested(nested_scales, offset, dynamic_map())
        self.dense = ops.dequantize_blockwise(self.packed, self.codes, NF4, 64, self.shape, dtype, nested=self.nested)

    def __call__(self, x, bias=None):
        return ops.blockwise_linear(x, self.packed, self.codes, NF4, 64, self.shape, bias, nested=self.nested)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_output_and_gradients_are_those_of_the_dense_layer(dtype, leading):
    stored = Stored(dtype=dtype)
    x, bias = torch.randn(*leading, 96).to(dtype), torch.randn(48).to(dtype)
    ours = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
    theirs = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
    y, expected = stored(*ours), F.linear(theirs[0], stored.dense, theirs[1])
    # the same sums, perhaps in another order: one unit in the last place of the dtype; and of 16 bits a few more, since
    # a processor without instructions for them multiplies in f32 and then does not round the weight
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-1, "rtol": 1e-2}
    torch.testing.assert_close(y, expected, **tolerance)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, **tolerance)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16, 17])
@pytest.mark.parametrize("shape, blocksize", SHAPES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_few_rows_straight_from_the_codes_are_the_product(native_kernels, rows, shape, blocksize, nested):
    generator = torch.Generator().manual_seed(0)
    stored, weight = stored_weight(shape, blocksize, nested, generator)
    x, bias = torch.randn(rows, shape[1], generator=generator), torch.randn(shape[0], generator=generator)
    y = torch.ops.lorasmith.blockwise_linear.default(x, bias, *stored)
    # f32 sums of up to 1,024 products of about 1 in another order
    expected = F.linear(x.double(), weight.double(), bias.double()).float()
    torch.testing.assert_close(y, expected, atol=5e-5, rtol=1e-5)
    low = torch.ops.lorasmith.blockwise_linear.default(x.bfloat16(), None, *stored)
    torch.testing.assert_close(low.float(), F.linear(x.bfloat16().float(), weight), atol=5e-5, rtol=2**-8)


# one row, few, more than a tile; columns that are split between programs, that end within a tile, and that fall to the
# reference since blocks cross rows
TRITON_CASES = [
    (1, (33, 96), 32, False, torch.float32),
    (1, (7, 1152), 128, True, torch.bfloat16),
    (3, (70, 320), 64, True, torch.float16),
    (17, (5, 1024), 256, False, torch.float32),
    (70, (66, 192), 64, True, torch.bfloat16),
    (2, (9, 96), 64, True, torch.float32),
]


@pytest.mark.parametrize("rows, shape, blocksize, nested, dtype", TRITON_CASES)
def test_tritons_products_are_those_of_the_dense_layer(rows, shape, blocksize, nested, dtype, monkeypatch):
    monkeypatch.setenv("LORASMITH_CHOICES", "fused")
    generator = torch.Generator().manual_seed(rows)
    stored, weight = stored_weight(shape, blocksize, nested, generator)
    # every other column of a wider tensor
    x = torch.randn(rows, 2 * shape[1], generator=generator).to(dtype)[:, ::2]
    grad, bias = torch.randn(rows, shape[0], generator=generator).to(dtype), torch.randn(shape[0]).to(dtype)
    kernels = triton_kernels("blockwise_linear")
    y, grad_x = kernels.blockwise_linear(x, bias, *stored), kernels.blockwise_linear_backward(grad, *stored)
    assert (y.dtype, grad_x.dtype) == (dtype, dtype)
    # f32 in another order; in 16 bits the weight may be rounded, half a unit each of up to 1,152, and then the result
    close = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    expected = F.linear(x.float(), weight, bias.float())
    torch.testing.assert_close(y.float(), expected, atol=close, rtol=2**-8)
    torch.testing.assert_close(grad_x.float(), grad.float() @ weight, atol=close, rtol=2**-8)


def test_many_rows_and_gpus_without_tensor_cores_for_triton_take_the_buffer(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    module = import_module("lorasmith.ops.blockwise_linear.triton")
    monkeypatch.setenv("LORASMITH_CHOICES", "fused")
    packed = module.packed_weight(stored_weight((40, 64), 64, False, torch.Generator().manual_seed(0))[0])
    ways = {name: lambda name=name: name for name in ("fused", "buffer")}
    for has, rows, expected in ((True, 1024, "fused"), (True, 1025, "buffer"), (False, 40, "buffer")):
        monkeypatch.setattr(module, "tensor_cores", lambda device, has=has: has)
        assert module.chosen("forward", torch.ones(rows, 64), packed, ways) == expected


@pytest.mark.parametrize("rows", [1, 5])
def test_tritons_kernels_write_every_element_of_their_results(rows, monkeypatch):
    kernels = triton_kernels("blockwise_linear")
    stored, weight = stored_weight((40, 512), 64, True, torch.Generator().manual_seed(0))
    empty = torch.empty
    with monkeypatch.context() as patch:
        # the buffer of split sums too
        patch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
        y = kernels.few_rows(torch.ones(rows, 512), None, kernels.packed_weight(stored), None)
    torch.testing.assert_close(y, weight.sum(1).expand(rows, 40), atol=1e-4, rtol=1e-5)


def every_tile():
    """The direction and tile of each that a product may be computed in, and the name of its list."""
    tiling = pytest.importorskip("lorasmith.ops.blockwise_linear.tiling", reason="triton is not installed")
    lists = (("forward", tiling.FORWARD), ("backward", tiling.BACKWARD))
    return {(direction, tile): name for direction, found in lists for name, tiles in found.items() for tile in tiles}


def test_every_tile_that_may_be_chosen_gives_the_product_and_the_update(monkeypatch):
    tiles = every_tile()
    matrix = import_module("lorasmith.ops.blockwise_linear.matrix")
    generator = torch.Generator().manual_seed(0)
    normal = lambda *sizes: torch.randn(*sizes, generator=generator).to(DEVICE)  # noqa: E731
    # outputs and ranks end within a tile, and so do the rows of the second one
    stored, weight = stored_weight((40, 128), 64, True, generator)
    packed = triton_kernels("blockwise_linear").packed_weight(stored)
    weight, b, a = weight.to(DEVICE), normal(40, 20), normal(20, 128)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **kinds: empty(*sizes, **kinds).fill_(float("nan")))
    for (direction, tile), name in tiles.items():
        kernel = tuned([tile.config], key=[])(getattr(matrix, f"_{direction}"))
        monkeypatch.setitem(getattr(matrix, f"_{direction.upper()}"), "chosen", kernel)
        monkeypatch.setattr(matrix, f"{direction}_tiles", lambda rows, dtype: "chosen")
        monkeypatch.setitem(matrix.FORWARD, "chosen", (tile,))
        low = normal(tile.rows + 2, 20)
        if direction == "forward":
            x = normal(tile.rows + 2, 128)
            y, expected = matrix.forward(x, None, packed, Update(low, b)), x @ weight.T + low @ b.T
        else:
            grad = normal(tile.rows + 2, 40)
            y, expected = matrix.backward(grad, packed, low, a), grad @ weight + low @ a
        # f32 sums of 128 products in another order
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-5, msg=f"{direction}, {name}, {tile}")


def test_tritons_result_is_the_same_bit_for_bit_in_every_call():
    kernels = triton_kernels("blockwise_linear")
    stored, _ = stored_weight((20, 512), 64, False, torch.Generator().manual_seed(0))
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    assert torch.equal(kernels.blockwise_linear(x, None, *stored), kernels.blockwise_linear(x, None, *stored))


@pytest.mark.parametrize("x", [torch.empty(0, 64), torch.ones(2, 3, 64, dtype=torch.float64), torch.ones(2, 3, 64)])
def test_triton_keeps_leading_axes_and_leaves_other_types_to_the_reference(x):
    stored, weight = stored_weight((5, 64), 64, False, torch.Generator().manual_seed(0))
    y = triton_kernels("blockwise_linear").blockwise_linear(x, None, *stored)
    torch.testing.assert_close(y, F.linear(x, weight.to(x.dtype)))


def test_gradients_agree_with_finite_differences():
    stored = Stored(5, 7)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stored, (x, bias))


def test_no_dense_weight_is_kept_for_backward():
    stored = Stored()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stored(torch.randn(4, 96, requires_grad=True))
    assert kept
    assert all(tensor.numel() < stored.dense.numel() for tensor in kept)


def test_the_parts_of_the_weight_get_no_gradient():
    stored = Stored()
    y = stored(torch.randn(2, 96))
    assert not y.requires_grad


def test_two_threads_do_not_disturb_each_other():
    layers = [Stored(seed=seed) for seed in range(2)]
    # more rows than are taken straight from the codes, so that the dense weight passes through the buffer
    x = torch.randn(24, 96)
    expected = [F.linear(x, layer.dense) for layer in layers]
    wrong = []

    def work(index):
        for _ in range(200):
            leaf = x.clone().requires_grad_()
            y = layers[index](leaf)
            y.sum().backward()
            if not torch.equal(y, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_gives_the_same_gradients(reentrant):
    first, second = Stored(96, 96, seed=1), Stored(48, 96, seed=2)

    def block(x):
        return second(first(x).relu())

    plain, recomputed = (torch.linspace(-1, 1, 4 * 96).view(4, 96).requires_grad_() for _ in range(2))
    block(plain).square().sum().backward()
    checkpoint(block, recomputed, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(plain.grad, recomputed.grad)


def test_a_nested_use_of_the_scratch_gets_its_own_buffer():
    with scratch.borrowed((4, 4), torch.float32, torch.device("cpu")) as outer:
        outer.fill_(1)
        with scratch.borrowed((4, 4), torch.float32, torch.device("cpu")) as inner:
            inner.fill_(2)
            assert outer.data_ptr() != inner.data_ptr()
        assert (outer == 1).all()


def test_the_scratch_is_reused_and_grows_to_the_largest():
    scratch.release()
    cpu = torch.device("cpu")
    with scratch.borrowed((100, 10), torch.float32, cpu) as large:
        pointer = large.data_ptr()
    with scratch.borrowed((3, 5), torch.float32, cpu) as small:
        assert small.data_ptr() == pointer
    with scratch.borrowed((1000,), torch.float32, cpu) as again:
        assert again.data_ptr() == pointer
    scratch.release()


def test_training_after_inference_mode_can_use_the_same_scratch():
    scratch.release()
    stored = Stored()
    # more rows than are taken straight from the codes
    with torch.inference_mode():
        stored(torch.randn(24, 96))
    x = torch.randn(24, 96, requires_grad=True)
    stored(x).sum().backward()
    torch.testing.assert_close(x.grad, stored.dense.sum(0).expand(24, 96))


def test_a_buffer_of_fake_tensors_is_never_handed_to_real_ones():
    scratch.release()
    cpu = torch.device("cpu")
    with scratch.borrowed((4, 4), torch.float32, cpu) as real:
        pass
    with FakeTensorMode(), scratch.borrowed((4, 4), torch.float32, cpu) as fake:
        assert isinstance(fake, FakeTensor)
    with scratch.borrowed((4, 4), torch.float32, cpu) as again:
        assert again.data_ptr() == real.data_ptr()


def test_autocast_sets_the_dtype_of_the_product():
    stored = Stored()
    x = torch.randn(2, 96, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = stored(x, torch.randn(48))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


# torch.compile itself instantiates the autograd.Function that it traces
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_layer_is_traced_whole_by_compile():
    stored = Stored()
    compiled = torch.compile(lambda x: stored(x).relu(), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 96)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = compiled(ours)
    expected = stored(theirs).relu()
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_shapes_come_out_on_the_meta_device():
    packed, scales = ops.quantize_blockwise(torch.empty(48, 96, device="meta"), NF4.to("meta"), 64)
    x = torch.empty(2, 3, 96, device="meta", requires_grad=True)
    y = ops.blockwise_linear(x, packed, scales, NF4.to("meta"), 64, (48, 96), None)
    assert y.shape == (2, 3, 48)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_an_empty_batch_gives_an_empty_result():
    x = torch.empty(0, 96, requires_grad=True)
    y = Stored()(x)
    assert y.shape == (0, 48)
    y.sum().backward()
    assert x.grad.shape == (0, 96)


@pytest.mark.parametrize("x, bias", [(torch.ones(2, 95), None), (torch.ones(2, 96), torch.ones(47))])
def test_an_input_or_bias_that_does_not_fit_is_refused(x, bias):
    with pytest.raises(FormatError, match=r"do not fit a weight of shape \[48, 96\]"):
        Stored()(x, bias)


def test_the_schemas_and_fakes_tell_the_truth():
    stored = Stored()
    nested = (stored.nested.scales, stored.nested.offset, stored.nested.codebook, 256)
    parts = (stored.packed, stored.codes, NF4, 64, stored.shape, *nested)
    checks = ("test_schema", "test_faketensor")
    x, grad = torch.randn(2, 3, 96), torch.randn(2, 3, 48)
    torch.library.opcheck(torch.ops.lorasmith.blockwise_linear.default, (x, None, *parts), test_utils=checks)
    torch.library.opcheck(torch.ops.lorasmith.blockwise_linear_backward.default, (grad, *parts), test_utils=checks)
