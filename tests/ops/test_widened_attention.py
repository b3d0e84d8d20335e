"""Attention in f32 that keeps 16-bit operands, held against PyTorch's own on widened ones."""

import gc

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

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
