"""AdamW on 8-bit moments: its definition, f32 AdamW and bitsandbytes'; Triton's kernel against the reference."""

import pytest
import torch
from torch.testing import assert_close

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.ops.adam8bit import reference
from lorasmith.ops.adam8bit.blocks import BLOCKSIZE, from_blocks, signed_map, to_blocks, unsigned_map
from lorasmith.ops.remainder import joined, remainder_of

CPU = torch.device("cpu")
SIGNED, UNSIGNED = signed_map(CPU), unsigned_map(CPU)
SIGNED_PAIR = (SIGNED.levels, SIGNED.edges)
UNSIGNED_PAIR = (UNSIGNED.levels, UNSIGNED.edges)
NUMBERS = (0.9, 0.995, 1e-8, 7, 1e-3, 0.1)
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def seeded(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def sample(numel, dtype=torch.float32, gradient_dtype=None):
    """The tensors of a step: weight, its master, gradient, codes and scales of both moments."""
    weight = seeded(numel).to(dtype)
    master = None if dtype == torch.float32 else weight.float() * (1 + 2**-10 * seeded(numel, seed=7))
    if master is not None:
        weight = master.to(dtype)
        if dtype == torch.bfloat16:
            master = remainder_of(master, weight).to(torch.int16)
        # somebody has written here since the last step
        weight[:: numel // 5 + 1] = 0
    gradient = seeded(numel, seed=1, scale=1e-3).to(gradient_dtype or dtype)
    mean = to_blocks(seeded(numel, seed=2, scale=1e-3), SIGNED.edges)
    square = to_blocks(seeded(numel, seed=3, scale=1e-3) ** 2, UNSIGNED.edges)
    return [weight, master, gradient, *mean, *SIGNED_PAIR, *square, *UNSIGNED_PAIR]


def cloned(tensors):
    return [None if tensor is None else tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("table", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_a_level_keeps_its_code_and_its_value(table):
    scale = 0.37
    values = table.levels * scale
    codes, scales = to_blocks(values, table.edges)
    assert torch.equal(codes, torch.arange(256, dtype=torch.uint8))
    assert scales.item() == torch.tensor(scale).item()
    assert_close(from_blocks(codes, scales, table.levels), values, rtol=2**-23, atol=0)


def test_every_code_is_that_of_the_nearest_level():
    values = seeded(3 * BLOCKSIZE + 17)
    codes, scales = to_blocks(values, SIGNED.edges)
    scaled = values / scales.repeat_interleave(BLOCKSIZE)[: len(values)]
    distances = (scaled[:, None] - SIGNED.levels[None]).abs()
    chosen = distances.gather(1, codes.long()[:, None])[:, 0]
    # between two levels at the same distance either is the nearest, and these distances are rounded
    assert_close(chosen, distances.amin(1), rtol=0, atol=2**-24)


def test_a_square_above_zero_never_becomes_zero():
    values = torch.full((BLOCKSIZE,), 1e-12)
    values[0], values[1] = 1.0, 0.0
    codes, scales = to_blocks(values, UNSIGNED.edges)
    back = from_blocks(codes, scales, UNSIGNED.levels)
    assert back[1] == 0
    assert back[2:].unique().tolist() == [UNSIGNED.levels[1].item()]


@pytest.mark.parametrize("table", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
@pytest.mark.parametrize("numel", [1, BLOCKSIZE - 1, 2 * BLOCKSIZE])
def test_zeros_stay_zeros(numel, table):
    back = from_blocks(*to_blocks(torch.zeros(numel), table.edges), table.levels)
    assert torch.equal(back, torch.zeros(numel))


def test_the_moments_take_the_gradient_up_before_they_are_rounded():
    """The step of f32 AdamW from the same moments."""
    numel = 1000
    weight, _, gradient, *rest = sample(numel)
    mean, square = from_blocks(*rest[:2], SIGNED.levels), from_blocks(*rest[4:6], UNSIGNED.levels)
    own = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([own], lr=1e-3, betas=(0.9, 0.995), weight_decay=0.1)
    own.grad = gradient
    optimizer.state[own] = {"step": torch.tensor(6.0), "exp_avg": mean, "exp_avg_sq": square}
    optimizer.step()
    reference.adam8bit_(weight, None, gradient, *rest, *NUMBERS)
    # roundings of f32, in another order
    assert_close(weight, own.detach(), rtol=1e-6, atol=1e-8)
    assert_close(from_blocks(*rest[:2], SIGNED.levels), from_blocks(*to_blocks(mean, SIGNED.edges), SIGNED.levels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_weight_is_the_rounding_of_its_master_which_moves_as_an_f32_weight_does(dtype):
    weight, master, gradient, *rest = sample(1000, dtype)
    assert (weight == 0).any()
    before = joined(weight, master) if dtype == torch.bfloat16 else master
    wide, own = torch.where(weight == 0, 0.0, before), cloned(rest)
    reference.adam8bit_(wide, None, gradient, *own, *NUMBERS)
    reference.adam8bit_(weight, master, gradient, *rest, *NUMBERS)
    assert same_bits(weight, wide.to(dtype))
    assert same_bits(joined(weight, master) if dtype == torch.bfloat16 else master, wide)


def test_a_weight_that_does_not_lie_row_by_row_moves_as_one_that_does():
    weight, _, gradient, *rest = sample(24 * 30)
    across = weight.view(24, 30).T.contiguous().T
    assert not across.is_contiguous()
    own = cloned(rest)
    reference.adam8bit_(across, None, gradient.view(24, 30), *own, *NUMBERS)
    reference.adam8bit_(weight, None, gradient, *rest, *NUMBERS)
    assert same_bits(across.contiguous().view(-1), weight)


def test_parts_of_a_large_weight_are_those_of_a_small_one(monkeypatch):
    whole, parted = sample(5 * BLOCKSIZE + 3), sample(5 * BLOCKSIZE + 3)
    reference.adam8bit_(*whole, *NUMBERS)
    monkeypatch.setattr(reference, "PART", 2 * BLOCKSIZE)
    reference.adam8bit_(*parted, *NUMBERS)
    assert all(same_bits(a, b) for a, b in zip(whole, parted, strict=True) if a is not None)


def test_fifty_steps_go_where_bitsandbytes_go():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # a least-squares problem whose gradients are of one size; far smaller ones bitsandbytes' CPU backend keeps coarsely
    x, y = seeded(256, 128, seed=4), seeded(256, 64, seed=5)
    theirs = torch.nn.Parameter(seeded(128, 64, seed=6, scale=0.1))
    ours, start = theirs.detach().clone(), theirs.detach().clone()
    optimizer = bitsandbytes.optim.AdamW8bit([theirs], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01)
    moments = [ops.Moment(torch.zeros(ours.numel(), dtype=torch.uint8), torch.zeros(32)) for _ in range(2)]
    for step in range(1, 51):
        theirs.grad = x.T @ (x @ theirs.detach() - y) / len(x)
        gradient = x.T @ (x @ ours - y) / len(x)
        optimizer.step()
        ops.adam8bit_(ours, gradient, *moments, ops.AdamStep(0.9, 0.999, 1e-8, step, 1e-2, 0.01))
    assert optimizer.state[theirs]["state1"].dtype == torch.uint8
    far = (ours - start).norm()
    # codes have some 1 % of rounding, which the means of fifty steps carry on
    assert (ours - theirs.detach()).norm() < 0.05 * far
    losses = [(x @ weight - y).square().mean().item() for weight in (ours, theirs.detach(), start)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] < 0.8 * losses[2]


def test_the_weights_version_counts_the_step():
    weight = torch.nn.Parameter(seeded(300))
    moments = [ops.Moment(torch.zeros(300, dtype=torch.uint8), torch.zeros(2)) for _ in range(2)]
    before = weight._version
    with torch.no_grad():
        ops.adam8bit_(weight, seeded(300), *moments, ops.AdamStep(*NUMBERS))
    assert weight._version > before


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("numel", [1, 255, 1024, 2 * 1024 + 300])
def test_tritons_step_is_bit_equal_to_the_reference(numel, dtype):
    ours, theirs = sample(numel, dtype), sample(numel, dtype)
    triton_kernels("adam8bit").adam8bit_(*ours, *NUMBERS)
    reference.adam8bit_(*theirs, *NUMBERS)
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)


@pytest.mark.parametrize("gradient_dtype", FLOATS)
def test_tritons_step_takes_a_gradient_of_any_type(gradient_dtype):
    ours, theirs = (sample(700, torch.bfloat16, gradient_dtype) for _ in range(2))
    triton_kernels("adam8bit").adam8bit_(*ours, *NUMBERS)
    reference.adam8bit_(*theirs, *NUMBERS)
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("value", [0.0, 1e-30, 3e18, float("inf"), float("nan")])
def test_tritons_step_takes_gradients_of_any_size(value):
    ours, theirs = sample(600), sample(600)
    for tensors in (ours, theirs):
        tensors[2][256:512] = value
        # the first step
        for place in (3, 4, 7, 8):
            tensors[place].zero_()
    triton_kernels("adam8bit").adam8bit_(*ours, *NUMBERS[:3], 1, 1e-3, 0.0)
    reference.adam8bit_(*theirs, *NUMBERS[:3], 1, 1e-3, 0.0)
    for a, b in zip(ours, theirs, strict=True):
        if a is not None:
            assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_tritons_step_takes_weights_and_gradients_that_do_not_lie_row_by_row():
    ours, theirs = sample(24 * 30), sample(24 * 30)
    for tensors in (ours, theirs):
        tensors[0] = tensors[0].view(30, 24).T
        tensors[2] = tensors[2].view(30, 24).T
    reference.adam8bit_(*theirs, *NUMBERS)
    triton_kernels("adam8bit").adam8bit_(*ours, *NUMBERS)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)
    ours[0], theirs[0] = ours[0].contiguous(), theirs[0].contiguous()
    reference.adam8bit_(*theirs, *NUMBERS)
    triton_kernels("adam8bit").adam8bit_(*ours, *NUMBERS)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": torch.zeros(0)}, "not empty"),
        ({"weight": torch.zeros(300, dtype=torch.float64)}, "must be f32, bf16 or f16"),
        ({"gradient": torch.zeros(299)}, "needs one of its shape"),
        ({"master": torch.zeros(300)}, "has a master"),
        ({"weight": torch.zeros(300).bfloat16()}, "has no master"),
        ({"mean": ops.Moment(torch.zeros(300, dtype=torch.uint8), torch.zeros(1))}, "mean.scales .* with 2"),
        ({"square": ops.Moment(torch.zeros(300), torch.zeros(2))}, "square.codes is torch.float32"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(changes, said):
    def new_moment():
        return ops.Moment(torch.zeros(300, dtype=torch.uint8), torch.zeros(2))

    given = {"weight": torch.zeros(300), "gradient": torch.zeros(300), "mean": new_moment(), "square": new_moment()}
    with pytest.raises(FormatError, match=said):
        ops.adam8bit_(**(given | changes), step=ops.AdamStep(*NUMBERS))


def test_the_op_says_what_it_writes():
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.lorasmith.adam8bit_.default, (*sample(300), *NUMBERS), test_utils=checks)
    torch.library.opcheck(
        torch.ops.lorasmith.adam8bit_.default, (*sample(300, torch.bfloat16), *NUMBERS), test_utils=checks
    )
