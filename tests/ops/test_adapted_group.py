"""Layers that read the same x in one step: what a step each gives."""

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.formats import dynamic_map, formats
from lorasmith.ops.adapted_linear import group

NF4 = formats["nf4"].codebook("cpu")
IN = 96


def normal(*sizes):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))


def stored(out_features):
    packed, scales = ops.quantize_blockwise(normal(out_features, IN), NF4, 32)
    codes, nested_scales, offset = ops.double_quantize(scales)
    parts = (packed, codes, NF4, 32, (out_features, IN), nested_scales, offset, dynamic_map(), 256)
    return ops.BlockwiseProduct(parts)


def part(kind, out_features, rank, biased, dtype=torch.float32):
    products = {
        "dense": lambda: ops.DenseProduct(normal(out_features, IN).to(dtype)),
        "narrow": lambda: ops.DenseProduct(normal(out_features, IN).bfloat16()),
        "nf4": lambda: stored(out_features),
        "zeros": lambda: ops.OffsetProduct(stored(out_features), normal(out_features, 3)),
        "int8": lambda: ops.RowwiseProduct(*ops.quantize_rowwise(normal(out_features, IN)), 6.0),
    }
    a, b = normal(rank, IN).requires_grad_(), normal(out_features, rank).requires_grad_()
    bias = normal(out_features).to(dtype).requires_grad_() if biased else None
    return ops.Part(products[kind](), bias, [ops.LowRank(a, b, 0.5)])


def apart(x, parts):
    return [ops.adapted_linear(x, each.product, each.bias, each.updates) for each in parts]


def leaves(x, parts):
    found = [x]
    for each in parts:
        found += [each.bias, each.updates[0].a, each.updates[0].b]
    return [tensor for tensor in found if tensor is not None and tensor.requires_grad]


def steps(monkeypatch):
    """Counts the joined steps."""
    taken = []
    apply = group._AdaptedLinears.apply
    monkeypatch.setattr(group._AdaptedLinears, "apply", lambda *given: taken.append(1) or apply(*given))
    return taken


def assert_the_same(x, parts, close, taken, used=slice(None)):
    """Outputs to the bit, gradients up to the order of sums."""
    together, expected = ops.adapted_linears(x, parts), apart(x, parts)
    assert taken == [1]
    for mine, other in zip(together, expected, strict=True):
        assert mine.dtype == x.dtype
        torch.testing.assert_close(mine, other, **close)
    inputs = leaves(x, parts)
    backs = [
        torch.autograd.grad(sum((y.float() * normal(*y.shape)).sum() for y in made[used]), inputs, allow_unused=True)
        for made in (together, expected)
    ]
    for mine, other in zip(*backs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == other.dtype
            torch.testing.assert_close(mine, other, **close)


F32 = {"atol": 1e-3, "rtol": 1e-5}
KINDS = [("nf4", "nf4", "nf4"), ("dense", "narrow"), ("nf4", "int8", "dense"), ("zeros", "nf4")]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("rows", [(2, 3), (300,)])
def test_a_joined_step_gives_what_the_layers_give_apart(kinds, rows, monkeypatch):
    taken = steps(monkeypatch)
    parts = [part(kind, 40 + 8 * k, 4 + k, biased=k == 1) for k, kind in enumerate(kinds)]
    x = normal(*rows, IN).requires_grad_()
    # f32 sums of some hundred products in another order
    assert_the_same(x, parts, F32, taken)


def test_16_bits_and_autocast_give_their_type(monkeypatch):
    taken = steps(monkeypatch)
    parts = [part("nf4", 40, 4, True), part("nf4", 24, 4, False)]
    x = normal(5, IN).bfloat16().requires_grad_()
    # one rounding more or less, of sums of some hundred
    assert_the_same(x, parts, {"atol": 2.0, "rtol": 2**-6}, taken)
    with torch.autocast("cpu", torch.bfloat16):
        together, expected = ops.adapted_linears(normal(5, IN), parts), apart(normal(5, IN), parts)
    assert [y.dtype for y in together] == [torch.bfloat16] * 2
    for mine, other in zip(together, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=2.0, rtol=2**-6)


@pytest.mark.parametrize("used", [slice(0, 1), slice(2, 3)])
def test_a_layer_whose_output_is_not_used_gets_no_gradient(used, monkeypatch):
    taken = steps(monkeypatch)
    parts = [part("nf4", 40, 4, True), part("dense", 24, 4, False), part("nf4", 24, 3, True)]
    together = ops.adapted_linears(normal(5, IN).requires_grad_(), parts)
    a = [each.updates[0].a for each in parts]
    grads = torch.autograd.grad(sum(y.sum() for y in together[used]), a, allow_unused=True)
    assert [k for k, grad in enumerate(grads) if grad is not None] == list(range(3))[used]
    taken.clear()
    assert_the_same(normal(5, IN).requires_grad_(), parts, F32, taken, used)


def test_frozen_factors_and_starts_keep_their_part(monkeypatch):
    taken = steps(monkeypatch)
    first, second = part("nf4", 40, 4, False), part("nf4", 24, 4, True)
    start = (normal(3, IN), normal(40, 3))
    parts = [
        replace(first, updates=[replace(first.updates[0], start=start)]),
        replace(second, updates=[replace(second.updates[0], a=second.updates[0].a.detach())]),
    ]
    assert_the_same(normal(5, IN).requires_grad_(), parts, F32, taken)
    taken.clear()
    # the first layer of a model: x itself needs none
    assert_the_same(normal(5, IN), parts, F32, taken)


def test_recomputation_gives_the_same_gradients():
    parts = [part("nf4", 40, 4, False), part("nf4", 40, 4, False)]

    def block(x):
        gate, up = ops.adapted_linears(x, parts)
        return gate * up

    plain, recomputed = (normal(5, IN).requires_grad_() for _ in range(2))
    block(plain).square().sum().backward()
    checkpoint(block, recomputed, use_reentrant=False).square().sum().backward()
    assert torch.equal(plain.grad, recomputed.grad)


def test_outputs_may_be_changed_in_place_as_some_models_clip_theirs():
    parts = [part("nf4", 40, 4, False), part("nf4", 40, 4, False)]
    grads = []
    for made in (ops.adapted_linears, apart):
        x = normal(5, IN).requires_grad_()
        first, second = made(x, parts)
        (first.clamp_(min=-1, max=1) * second.mul_(2)).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, **F32)


def test_x_is_kept_once_and_no_dense_weight():
    parts, kept = [part("nf4", 40, 4, False), part("nf4", 24, 3, False)], []
    x = normal(50, IN).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        results = ops.adapted_linears(x, parts)
    assert all(y.requires_grad for y in results)
    factors = sum(factor.numel() for each in parts for factor in (each.updates[0].a, each.updates[0].b))
    assert sum(tensor.numel() for tensor in kept) == x.numel() + 50 * 7 + factors


def test_gradients_agree_with_finite_differences():
    weights = [normal(3, 5).double(), normal(4, 5).double()]
    x, *factors = (normal(*s).double().requires_grad_() for s in [(4, 5), (2, 5), (3, 2), (1, 5), (4, 1)])

    def step(x, *factors):
        updates = [ops.LowRank(a, b, 0.7) for a, b in (factors[:2], factors[2:])]
        parts = [ops.Part(ops.DenseProduct(w), None, [u]) for w, u in zip(weights, updates, strict=True)]
        return tuple(ops.adapted_linears(x, parts))

    assert torch.autograd.gradcheck(step, (x, *factors))


@pytest.mark.parametrize(
    "changes", [{"dropout": 0.5}, {"scaling": 0.25}, {"rows": slice(0, 2)}, {"gain": torch.ones(24)}, None, "two"]
)
def test_what_cannot_be_joined_takes_a_step_each(changes, monkeypatch):
    taken = steps(monkeypatch)
    first, second = part("nf4", 40, 4, False), part("nf4", 24, 4, False)
    updates = {None: [], "two": second.updates * 2} if isinstance(changes, str | None) else {}
    changed = updates[changes] if updates else [replace(second.updates[0], **changes)]
    parts = [first, replace(second, updates=changed)]
    torch.manual_seed(0)
    together = ops.adapted_linears(normal(5, IN), parts)
    torch.manual_seed(0)
    assert all(torch.equal(*pair) for pair in zip(together, apart(normal(5, IN), parts), strict=True))
    assert taken == []


def test_without_gradients_each_layer_takes_its_own_operation(monkeypatch):
    taken, parts = steps(monkeypatch), [part("nf4", 40, 4, False), part("nf4", 24, 4, False)]
    with torch.no_grad():
        together = ops.adapted_linears(normal(5, IN), parts)
        assert all(torch.equal(*pair) for pair in zip(together, apart(normal(5, IN), parts), strict=True))
    assert taken == []


def test_an_update_that_does_not_fit_is_refused():
    parts = [part("dense", 40, 4, False), part("dense", 24, 4, False)]
    with pytest.raises(FormatError, match=r"A \[4, 96\] and B \[40, 4\] does not fit x \[5, 95\]"):
        ops.adapted_linears(normal(5, IN - 1), parts)
