"""Rotary position embedding: the reference against transformers' functions, Triton's kernels against the reference."""

from functools import partial
from itertools import product

import pytest
import torch
from torch.testing import assert_close
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as coheres
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as glms
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llamas
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as phi3s

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.ops import Rotation
from lorasmith.ops.rotary import reference

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FAMILIES = {
    "llama": (llamas, Rotation(), 12),
    "phi3": (phi3s, Rotation(), 8),
    "cohere": (coheres, Rotation(interleaved=True, wide=True), 12),
    "glm": (glms, Rotation(interleaved=True, per_pair=True), 8),
}


def tensors(columns, dtype, table=None, batch=2, heads=(3, 2), tokens=3, width=12):
    """q and k as projections leave them, and a table whose entries all differ."""
    generator = torch.Generator().manual_seed(columns)
    q, k = (torch.randn(batch, tokens, n, width, generator=generator).to(dtype).transpose(1, 2) for n in heads)
    return q, k, *torch.randn(2, batch, tokens, columns, generator=generator).to(table or dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_and_gradients_are_those_of_transformers_to_the_bit(family, dtype):
    function, rotation, columns = FAMILIES[family]
    q, k, cos, sin = tensors(columns, dtype)
    q.requires_grad_(), k.requires_grad_()
    own = function(q, k, cos, sin)
    own_grads = torch.autograd.grad(own, (q, k), [turned.detach().flip(1) for turned in own])
    if rotation.per_pair:
        cos, sin = cos[..., : columns // 2], sin[..., : columns // 2]
    ours = ops.rotary(q, k, cos, sin, rotation)
    grads = torch.autograd.grad(ours, (q, k), [turned.detach().flip(1) for turned in ours])
    for mine, other in zip((*ours, *grads), (*own, *own_grads), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, other)
    # attention takes such strides without a copy
    assert ours[0].stride() == q.stride()


def test_gradients_are_those_of_finite_differences():
    q, k, cos, sin = tensors(8, torch.float64)
    q.requires_grad_(), k.requires_grad_()
    for rotation in (Rotation(), Rotation(interleaved=True), Rotation(wide=True)):
        turn = partial(ops.rotary, cos=cos, sin=sin, rotation=rotation)
        assert torch.autograd.gradcheck(turn, (q, k), fast_mode=True)


@pytest.mark.parametrize("needed", [0, 1])
def test_only_what_needs_a_gradient_gets_one(needed):
    *pair, cos, sin = tensors(12, torch.float32)
    pair[needed].requires_grad_()
    q, k = ops.rotary(*pair, cos, sin)
    (q.sum() + k.sum()).backward()
    assert pair[needed].grad is not None and pair[1 - needed].grad is None


def test_nothing_but_the_table_is_kept_for_the_backward_pass():
    q, k, cos, sin = tensors(12, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.rotary(q.requires_grad_(), k, cos, sin)
    assert {t.data_ptr() for t in kept} == {cos.data_ptr(), sin.data_ptr()}


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda q, k, cos, sin: (q, k.float(), cos, sin), "of one float type"),
        (lambda q, k, cos, sin: (q, k[..., :8], cos, sin), "number of heads only"),
        (lambda q, k, cos, sin: (q, k, cos[:, :2], sin[:, :2]), r"must be \[2 or 1, 3, R\]"),
        (lambda q, k, cos, sin: (q, k, cos, sin.float()), r"must be \[2 or 1, 3, R\]"),
        (lambda q, k, cos, sin: (q, k, cos[..., :7], sin[..., :7]), "an even number of at most 12"),
        (lambda q, k, cos, sin: (q, k, cos.float(), sin.float()), "f32 tables and wide"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, complaint):
    with pytest.raises(FormatError, match=complaint):
        ops.rotary(*change(*tensors(12, torch.bfloat16)))


@pytest.mark.parametrize("interleaved, per_pair, wide, backward", list(product((False, True), repeat=4)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("poisoned_memory")
def test_triton_gives_the_bits_of_the_reference(interleaved, per_pair, wide, backward, dtype):
    kernels = triton_kernels("rotary")
    options = (interleaved, per_pair, wide, backward)
    # heads whose last columns are not turned, and numbers of heads and pairs that are no powers of two
    given = tensors(5 if per_pair else 10, dtype, torch.float32 if wide else dtype, batch=1 + wide)
    for mine, other in zip(kernels.rotary(*given, *options), reference.rotary(*given, *options), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, other)


@pytest.mark.usefixtures("poisoned_memory")
def test_triton_turns_many_heads_with_one_table_for_all_rows():
    kernels = triton_kernels("rotary")
    q, k, cos, sin = tensors(64, torch.float16, heads=(71, 1), tokens=2, width=64)
    given = (q, k, cos[:1], sin[:1], False, False, False, False)
    for mine, other in zip(kernels.rotary(*given), reference.rotary(*given), strict=True):
        assert torch.equal(mine, other)


def test_triton_reads_tensors_of_any_strides():
    kernels = triton_kernels("rotary")
    q, k, cos, sin = tensors(12, torch.float32)
    broad = torch.randn(1).expand(q.shape)
    apart = (broad, k.mT.contiguous().mT, cos.mT.contiguous().mT, sin)
    plain = (broad.clone(), k, cos, sin)
    made, other = (kernels.rotary(*given, False, False, False, True) for given in (apart, plain))
    for mine, its in zip(made, other, strict=True):
        assert_close(mine, its, atol=0, rtol=0)
