"""The thin products of a low-rank update: every instruction set against the reference."""

import pytest
import torch

from lorasmith.ops.low_rank import reference, schema

SIZES = [(1, 8, 1), (3, 5, 2), (4, 64, 8), (13, 131, 7), (30, 200, 32), (9, 1024, 33)]
TYPES = [torch.float32, torch.bfloat16]


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rows, features, rank", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_projection_and_outer_product_are_the_references(native_kernels, rows, features, rank, dtype):
    x, a, h = seeded(rows, features).to(dtype), seeded(rank, features), seeded(rows, rank)
    # f32 sums of up to 1,024 products of about 1 in another order
    close = {"atol": 1e-4, "rtol": 1e-5}
    torch.testing.assert_close(schema.project(x, a, 0.5), reference.project(x, a, 0.5), **close)
    torch.testing.assert_close(schema.outer(h, x), reference.outer(h, x), **close)


@pytest.mark.parametrize("rows, features, rank", SIZES)
@pytest.mark.parametrize("held", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_an_update_is_added_with_one_rounding(native_kernels, rows, features, rank, held, dtype):
    y, h, b = seeded(rows, features).to(held), seeded(rows, rank), seeded(rank, features)
    exact = y.double() + h.double() @ b.double()
    made = schema.add_update(y.clone(), h, b, dtype)
    assert made.dtype == dtype
    unit = 2**-8 if dtype == torch.bfloat16 else 2**-20
    torch.testing.assert_close(made.double(), exact, rtol=unit, atol=1e-4)


def test_an_update_is_added_in_place_where_the_type_stays(native_kernels):
    for dtype in TYPES:
        y = seeded(6, 40).to(dtype)
        assert schema.add_update(y, seeded(6, 4), seeded(4, 40), dtype).data_ptr() == y.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_projection_in_one_type_is_rounded_once_and_copies_no_operand(dtype):
    x, a = seeded(6, 40).to(dtype), seeded(4, 40).to(dtype)
    # torch 2.11 warns that it would forget them between cycles, of which there is one
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
        found = reference.project(x, a, 1 / 3)
    assert not {"aten::copy_", "aten::_to_copy", "aten::mul_"} & {event.key for event in seen.key_averages()}
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), x.double() @ a.double().T / 3, rtol=unit, atol=unit)


def test_values_without_a_number_stay_so_when_they_are_rounded(native_kernels):
    y = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3.4e38] * 4])
    made = schema.add_update(y, torch.zeros(1, 2), torch.zeros(2, 16), torch.bfloat16)
    torch.testing.assert_close(made, y.bfloat16(), equal_nan=True, rtol=0, atol=0)


def test_strided_and_half_precision_values_give_the_same(native_kernels):
    x, a = seeded(40, 6).T, seeded(40, 3).T
    torch.testing.assert_close(schema.project(x, a, 1.0), x @ a.T)
    torch.testing.assert_close(schema.outer(seeded(6, 3), x), seeded(6, 3).T @ x)
    half = seeded(6, 40).half()
    torch.testing.assert_close(schema.project(half, a, 1.0), half.float() @ a.T)
    torch.testing.assert_close(
        schema.add_update(seeded(40, 6).T, seeded(6, 3), a, torch.float32), seeded(40, 6).T + seeded(6, 3) @ a
    )
