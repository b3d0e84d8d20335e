"""f32 as bfloat16 and 16 bits more: nothing is lost but one unit of halfway cases, whatever the number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.ops.remainder import REMAINDER, joined, remainder_of

# bfloat16's smallest number, below which a number may round to zero
LEAST = 2.0**-133


def back(wide):
    narrow = wide.bfloat16()
    remainder = remainder_of(wide, narrow)
    assert remainder.abs().max() <= 2**15
    return joined(narrow, remainder.to(REMAINDER))


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_any_finite_number_comes_back_to_one_unit_of_its_last_place(values):
    wide = torch.tensor(values, dtype=torch.float32)
    wide = torch.where(wide.abs() < LEAST, 0.0, wide)
    assert ((back(wide).view(torch.int32) - wide.view(torch.int32)).abs() <= 1)[wide != 0].all()
    assert (back(wide)[wide == 0] == 0).all()


@pytest.mark.parametrize("lower_half", [0x7FFF, 0x8000, 0x8001])
@pytest.mark.parametrize("upper_half", [0x3F80, 0x3F81, -0x4080, 0x7F7F])
def test_only_halfway_cases_that_are_rounded_down_lose_a_unit(upper_half, lower_half):
    bits = torch.tensor([(upper_half << 16) + lower_half], dtype=torch.int32)
    lost = bits - back(bits.view(torch.float32)).view(torch.int32)
    assert lost.item() == (lower_half == 0x8000 and upper_half % 2 == 0)


def test_what_is_written_over_a_number_counts_to_half_its_last_bit():
    wide = torch.linspace(-3, 3, 1001)
    remainder = remainder_of(wide, wide.bfloat16()).to(REMAINDER)
    for written in (torch.full_like(wide, 0.0), wide.flip(0), torch.full_like(wide, 1e-38)):
        narrow = written.bfloat16()
        now = joined(narrow, remainder)
        assert torch.equal(now[narrow == 0], torch.zeros_like(now[narrow == 0]))
        assert ((now - narrow.float()).abs() <= narrow.float().abs() * 2**-8 + 2**-134).all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so(value):
    assert not back(torch.tensor([value])).isfinite()


def test_tensors_that_do_not_lie_row_by_row_keep_their_places():
    wide = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).T
    assert torch.equal(back(wide), wide)
