import pytest
import torch
from torch.testing import assert_close

from lorasmith.methods.lora.factors import Factors, beside, decompose, decompose_product, decompose_roughly, norm


def factors(rank: int, seed: int = 0, out: int = 12, inside: int = 9) -> Factors:
    torch.manual_seed(seed)
    return Factors(torch.randn(rank, inside), torch.randn(out, rank))


def test_side_by_side_they_are_the_sum_of_the_products():
    one, two = factors(2), factors(3, 1)
    both = beside([one, two])
    assert both.rank == 5
    # f32 sums in another order
    assert_close(both.product(), one.product() + two.product(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [1, 4, 9, 20])
def test_the_singular_values_of_a_product_are_those_of_the_matrix(rank):
    made = decompose_product(factors(rank))
    expected = torch.linalg.svdvals(factors(rank).product())
    count = min(rank, 9)
    assert_close(made.s[:count], expected[:count], atol=1e-4, rtol=1e-5)
    assert_close(made.leading(9).product(), factors(rank).product(), atol=1e-4, rtol=1e-5)


def test_the_error_of_a_lower_rank_is_the_tail_of_the_singular_values():
    matrix = factors(9).product()
    parts = decompose(matrix)
    for rank in range(1, 9):
        for lower in (parts.leading(rank), parts.balanced(rank)):
            assert float((matrix - lower.product()).norm()) == pytest.approx(float(parts.s[rank:].norm()), rel=1e-3)


def test_the_norm_is_that_of_the_product():
    for rank in (2, 20):
        assert norm(factors(rank)) == pytest.approx(float(factors(rank).product().norm()), rel=1e-5)


def test_a_rough_decomposition_finds_a_matrix_of_low_rank_and_never_overstates():
    generator = torch.Generator().manual_seed(0)
    low = factors(3, out=80, inside=60).product()
    assert_close(decompose_roughly(low, 3, generator).leading(3).product(), low, atol=1e-4, rtol=1e-5)
    noisy = low + torch.randn(80, 60)
    rough, exact = decompose_roughly(noisy, 8, generator), torch.linalg.svdvals(noisy)
    assert (rough.s <= exact[:8] * (1 + 1e-5)).all()
    assert_close(rough.s, exact[:8], atol=0, rtol=0.02)
