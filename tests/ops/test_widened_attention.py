"""Attention in f32 that keeps 16-bit operands, held against PyTorch's own on widened ones."""

import gc

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lorasmith.errors import FormatError
from lorasmith.ops.widened_attention import widened_attention

TOKENS = 9


def operands(dtype, heads=4, key_heads=4):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, count, TOKENS, 8) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def window(kind):
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    seen = ((distance >= 0) & (distance < 3))[None, None]
    return {"none": None, "bool": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))}[kind]


def plain(query, key, value, mask, scaling, causal):
    wide = [each.float() for each in (query, key, value)]
    output = functional.scaled_dot_product_attention(
        *wide, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).to(query.dtype)


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_and_gradients_are_those_of_attention_on_widened_operands(dtype, key_heads, mask):
    ours, theirs = operands(dtype, key_heads=key_heads), operands(dtype, key_heads=key_heads)
    y = widened_attention(*ours, window(mask), 0.3, mask == "none")
    expected = plain(*theirs, window(mask), 0.3, mask == "none")
    assert torch.equal(y, expected)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y.backward(grad)
    expected.backward(grad)
    # our backward starts from the rounded output: a rounding of it, and one of the gradient
    bound = 4 * torch.finfo(dtype).eps
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad.dtype == dtype
        assert_close(mine.grad, other.grad, atol=bound, rtol=bound)


def test_in_float32_the_gradients_are_exact_to_rounding():
    ours, theirs = operands(torch.float32, key_heads=2), operands(torch.float32, key_heads=2)
    widened_attention(*ours, None, None, True).square().sum().backward()
    plain(*theirs, None, None, True).square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        # sums in another order
        assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_what_is_kept_for_the_backward_pass_is_narrow():
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    query, key, value = operands(torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = widened_attention(query, key, value, None, None, True)
    gc.collect()
    wide = [tensor for tensor in kept if tensor.dtype == torch.float32]
    # the sums of the softmax, one number a row
    assert [tensor.numel() for tensor in wide] == [2 * 4 * TOKENS]
    assert any(tensor.data_ptr() == y.data_ptr() for tensor in kept)


def test_operands_in_any_layout_give_the_same():
    plain_ones = operands(torch.float32)
    turned = [each.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for each in plain_ones]
    y, other = (widened_attention(*each, None, None, True) for each in (plain_ones, turned))
    assert torch.equal(y, other)
    grad = torch.randn_like(y)
    y.backward(grad)
    other.backward(grad)
    assert all(torch.equal(one.grad, two.grad) for one, two in zip(plain_ones, turned, strict=True))


def test_what_it_cannot_do_is_refused_by_name():
    query, key, value = operands(torch.bfloat16, 4, 3)
    with pytest.raises(FormatError, match="must be a multiple"):
        widened_attention(query, key, value, None, None, True)
    query, key, value = operands(torch.bfloat16)
    with pytest.raises(FormatError, match="mask requires a gradient"):
        widened_attention(query, key, value, torch.zeros(TOKENS, TOKENS, requires_grad=True), None, False)


@pytest.mark.parametrize("batch, tokens", [(0, TOKENS), (2, 0)])
def test_nothing_gives_nothing(batch, tokens):
    # the kernel ends the process by a division by zero
    query = torch.zeros(batch, 4, tokens, 8, dtype=torch.bfloat16, requires_grad=True)
    key = torch.zeros(batch, 2, tokens, 8, dtype=torch.bfloat16)
    y = widened_attention(query, key, key, None, None, True)
    assert y.shape == (batch, tokens, 4, 8)
    y.sum().backward()
    assert query.grad.shape == query.shape
