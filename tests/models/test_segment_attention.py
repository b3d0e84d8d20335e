"""One kernel for all segments of a packed row gives what a call for each gives.

On a CPU flex attention runs uncompiled and has no gradients, and variable-length Flash Attention has no kernel: their
gradients and its values are those of stand-ins that do what the documentation says. They check how the kernels are
called, not what a GPU computes.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from lorasmith.errors import ModelError
from lorasmith.models import each_segment, segment_attention
from lorasmith.models.segment_attention import attend, flex, way
from lorasmith.models.segments import BLOCK, Segments, block_mask, ends, with_shared

CPU = torch.device("cpu")
LENGTHS = {"ragged": [5, 1, 7, 4], "equal": [6, 6], "tiles": [150, 3, 130, 260]}
KINDS = {
    "causal": {"causal": True},
    "window": {"causal": True, "window": 4},
    "encoder": {"causal": False},
    "prefix": {"causal": True, "shared": 3},
    "prefix-window": {"causal": True, "shared": 3, "window": 5},
    "prefix-encoder": {"causal": False, "shared": 3},
}
# f32: the same sums in another order
CLOSE = {"rtol": 1e-5, "atol": 2e-6}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


def segments_of(lengths, causal, window=None, shared=0):
    return Segments(tuple((torch.tensor([0, *lengths]).cumsum(0) + shared).tolist()), causal, window)


def row(where, heads=4, kv_heads=2, width=8):
    generator = torch.Generator().manual_seed(len(where.bounds))
    sizes = [(heads, where.tokens), *[(kv_heads, where.shared + where.tokens)] * 2]
    return [torch.randn(1, h, t, width, generator=generator).requires_grad_() for h, t in sizes]


def dense_mask(where):
    """Bool [T, P + T], a row at a time from what the words say."""
    seen = torch.zeros(where.tokens, where.shared + where.tokens, dtype=torch.bool)
    for start, end in pairwise(where.bounds):
        for query in range(start, end):
            position = where.shared + query - start
            # a shared key stands where it is, one of the segment behind the shared ones
            keys = torch.tensor([*range(where.shared), *range(start, query + 1 if where.causal else end)])
            own = torch.where(keys < where.shared, keys, where.shared + keys - start)
            seen[query - where.shared, keys] = where.window is None or position - own < where.window
    return seen


def one_by_one(where, query, key, value):
    module = nn.Module()
    # how transformers' layers say that heads are grouped
    module.num_key_value_groups = query.shape[1] // key.shape[1]
    call = each_segment.Call(module, 0.0, None, where.causal)
    return each_segment.each_segment(call, query, key, value, where)


def flash(query, key, value, starts_q, starts_k, most_q, most_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """What the documentation of varlen_attn says, with the causal corner at the last key."""
    left, right = window_size
    parts = []
    for (q0, q1), (k0, k1) in zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True):
        assert q1 - q0 <= most_q and k1 - k0 <= most_k
        distance = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) - torch.arange(k1 - k0)
        seen = (distance <= left if left >= 0 else True) & (distance >= -right if right >= 0 else distance > -(10**9))
        own = [part.transpose(0, 1)[None] for part in (query[q0:q1], key[k0:k1], value[k0:k1])]
        y = scaled_dot_product_attention(*own, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        parts.append(y[0].transpose(0, 1))
    return torch.cat(parts)


def dense_flex(query, key, value, *, block_mask, scale, enable_gqa):
    """What the documentation of flex_attention says of a mask."""
    positions = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])
    seen = block_mask.mask_mod(torch.tensor(0), torch.tensor(0), *positions)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)


@pytest.fixture(params=["flex", "varlen"])
def at_once(request, monkeypatch):
    monkeypatch.setattr(segment_attention, "varlen_attn", flash)
    monkeypatch.setattr(segment_attention, "flex_attention", dense_flex)
    monkeypatch.setattr(segment_attention, "_GROUPED", {"enable_gqa": True})
    return lambda where, *operands: attend(request.param, *operands, where, None)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("lengths", [LENGTHS["ragged"], LENGTHS["equal"]], ids=["ragged", "equal"])
def test_values_and_gradients_equal_a_call_for_each_segment(lengths, kind, at_once):
    where = segments_of(lengths, **kind)
    operands = row(where)
    wanted = one_by_one(where, *operands)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    got = at_once(where, *operands)
    assert_close(got, wanted, **CLOSE)
    pairs = [torch.autograd.grad((y * weights).sum(), operands) for y in (got, wanted)]
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS.values(), {"causal": True, "window": 140, "shared": 3}])
@pytest.mark.parametrize("lengths", [LENGTHS["ragged"], LENGTHS["tiles"]], ids=["ragged", "tiles"])
def test_flex_attention_itself_gives_the_values_of_a_call_for_each_segment(lengths, kind):
    where = segments_of(lengths, **kind)
    operands = [each.detach() for each in row(where)]
    assert_close(flex(*operands, where, None), one_by_one(where, *operands), **CLOSE)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_tiles_hold_every_key_that_is_seen_and_whole_ones_no_other(lengths, kind):
    where = segments_of(lengths, **kind)
    mask, seen = block_mask(where, CPU), dense_mask(where)
    rows, columns = (-(-size // BLOCK) for size in seen.shape)
    tiles = nn.functional.pad(seen, (0, columns * BLOCK - seen.shape[1], 0, rows * BLOCK - seen.shape[0]))
    tiles = tiles.unflatten(0, (rows, BLOCK)).unflatten(2, (columns, BLOCK)).transpose(1, 2)
    inside = torch.ones_like(seen)
    inside = nn.functional.pad(inside, (0, columns * BLOCK - seen.shape[1], 0, rows * BLOCK - seen.shape[0]))
    inside = inside.unflatten(0, (rows, BLOCK)).unflatten(2, (columns, BLOCK)).transpose(1, 2)
    whole, partial = (torch.zeros(rows, columns, dtype=torch.bool) for _ in range(2))
    for listed, count, target in (
        (mask.full_kv_indices, mask.full_kv_num_blocks, whole),
        (mask.kv_indices, mask.kv_num_blocks, partial),
    ):
        for tile in range(rows):
            target[tile, listed[0, 0, tile, : count[0, 0, tile]].long()] = True
    assert not (whole & partial).any()
    assert torch.equal(whole | partial, tiles.any(-1).any(-1))
    assert (tiles | ~inside)[whole].all()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_rule_of_the_tiles_is_that_of_the_words(kind):
    where = segments_of(LENGTHS["ragged"], **kind)
    sees = block_mask(where, CPU).mask_mod
    query, key = torch.arange(where.tokens)[:, None], torch.arange(where.shared + where.tokens)
    zero = torch.tensor(0)
    assert torch.equal(sees(zero, zero, query, key).broadcast_to(dense_mask(where).shape), dense_mask(where))


def test_what_a_kernel_wants_on_its_device_is_made_once_for_all_layers():
    one, other = (segments_of([5, 1, 7], causal=True, shared=2) for _ in range(2))
    assert ends(one, CPU)[0] is ends(other, CPU)[0]
    assert block_mask(one, CPU) is block_mask(other, CPU)
    assert [bound.tolist() for bound in ends(one, CPU)] == [[0, 5, 6, 13], [0, 7, 10, 19]]


def test_shared_keys_stand_before_every_segment():
    where = segments_of([2, 1], causal=True, shared=2)
    rows = torch.arange(5.0)[:, None, None]
    assert with_shared(rows, where).flatten().tolist() == [0, 1, 2, 3, 0, 1, 4]


def test_an_encoders_window_is_refused():
    with pytest.raises(ModelError, match="sliding window of an encoder"):
        segments_of([5, 3], causal=False, window=4)
    assert not segments_of([5, 3], causal=False, window=5).slides


class OnGpu:
    """What the choice asks of a tensor on a GPU."""

    is_cuda = True
    device = torch.device("cuda", 0)

    def __init__(self, dtype, width):
        self.dtype, self.shape = dtype, (1, 4, 9, width)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "values", "dropout", "wanted"),
    [
        ((9, 0), torch.bfloat16, 128, 128, 0.0, "varlen"),
        ((8, 0), torch.float16, 64, 64, 0.0, "varlen"),
        ((7, 5), torch.float16, 64, 64, 0.0, "flex"),
        ((9, 0), torch.float32, 64, 64, 0.0, "flex"),
        ((9, 0), torch.bfloat16, 192, 128, 0.0, "flex"),
        ((9, 0), torch.bfloat16, 512, 512, 0.0, "flex"),
        ((9, 0), torch.bfloat16, 128, 128, 0.1, "segments"),
    ],
)
def test_the_choice_follows_device_type_and_width(monkeypatch, capability, dtype, width, values, dropout, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(segment_attention.gpu, "launches", lambda: True)
    assert way(OnGpu(dtype, width), OnGpu(dtype, values), dropout) == wanted


def test_a_cpu_and_a_gpu_without_a_compiler_attend_segment_by_segment(monkeypatch):
    assert way(torch.ones(1, 4, 9, 8), torch.ones(1, 4, 9, 8), 0.0) == "segments"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(segment_attention.gpu, "launches", lambda: False)
    assert way(OnGpu(torch.float32, 64), OnGpu(torch.float32, 64), 0.0) == "segments"


def test_flex_attention_that_cannot_be_compiled_is_told_of_once_and_left(monkeypatch, caplog):
    def refuses(*arguments, **keywords):
        raise RuntimeError("out of resource: shared memory\nand a long trace")

    monkeypatch.setattr(segment_attention, "flex_attention", refuses)
    monkeypatch.setattr(segment_attention, "_failed", [])
    where = segments_of([3, 2], causal=True)
    assert attend("flex", *row(where), where, None) is None
    assert not segment_attention._flex_works()
    assert "out of resource: shared memory)" in caplog.text


def test_out_of_memory_is_no_failure_to_compile(monkeypatch):
    def full(*arguments, **keywords):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(segment_attention, "flex_attention", full)
    monkeypatch.setattr(segment_attention, "_failed", [])
    where = segments_of([3, 2], causal=True)
    with pytest.raises(torch.OutOfMemoryError):
        attend("flex", *row(where), where, None)
    assert segment_attention._flex_works()


def test_pytorchs_variable_length_attention_has_the_arguments_that_are_given():
    assert {"window_size", "scale"} <= set(segment_attention._TAKES)
    assert list(segment_attention._TAKES)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert segment_attention.varlen_attn is varlen.varlen_attn


@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length Flash Attention has no kernel on a CPU")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("dtype", "roundings"), [(torch.bfloat16, 4), (torch.float32, 64)])
def test_on_a_gpu_the_chosen_kernel_equals_a_call_for_each_segment(kind, dtype, roundings):
    where = segments_of(LENGTHS["tiles"], **kind)
    operands = [each.detach().to("cuda", dtype).requires_grad_() for each in row(where, width=64)]
    chosen = way(operands[0], operands[2], 0.0)
    assert chosen != "segments"
    got, wanted = attend(chosen, *operands, where, None), one_by_one(where, *operands)
    # some roundings of the type: f32 sums some hundred keys in another order
    bound = roundings * torch.finfo(dtype).eps
    assert_close(got, wanted, rtol=bound, atol=bound)
    pairs = [torch.autograd.grad(y.float().square().sum(), operands) for y in (got, wanted)]
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, rtol=4 * bound, atol=4 * bound * float(other.abs().max()))
