"""Error-compensated rounding against its definition, and against rounding number by number."""

import pytest
import torch
from torch import Tensor, nn

from lorasmith.errors import FormatError
from lorasmith.quantized import Moments, QuantizedLinear, Scheme, compensated
from lorasmith.quantized.rounding.grid import grid_of, scales_of, store_, values_of
from lorasmith.quantized.rounding.scales import fitted_scales
from lorasmith.quantized.rounding.sweep import forward_feedback, mutual_feedback, sweep_

SCHEMES = {
    "nf4": Scheme(),
    "nf4, f32 scales": Scheme(double_quant=False),
    "fp4": Scheme("fp4"),
    "int4": Scheme("int4", 32),
    "int4 with zero points": Scheme("int4", 32, zero_points=True),
    "int8": Scheme("int8"),
}


def correlated(features: int = 64, rows: int = 512) -> Tensor:
    """Second moments of inputs whose features move together, as a model's do."""
    torch.manual_seed(1)
    x = torch.randn(rows, features // 4) @ torch.randn(features // 4, features) + 0.3 * torch.randn(rows, features)
    moments = Moments(features)
    moments.add(x)
    return moments.second


def stored(scheme: Scheme, rows: int = 24, columns: int = 64) -> tuple[QuantizedLinear, Tensor]:
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows, bias=False)
    return QuantizedLinear.from_float(linear, scheme), linear.weight.detach()


def error(layer: QuantizedLinear, target: Tensor, second: Tensor) -> float:
    lost = target - layer.dequantize()
    return float(((lost @ second) * lost).sum())


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return SCHEMES[request.param]


def test_moments_are_the_means_of_products():
    x = torch.randn(7, 3, 5)
    moments = Moments(5)
    moments.add(x[:4])
    moments.add(x[4:])
    flat = x.reshape(-1, 5)
    torch.testing.assert_close(moments.second, flat.T @ flat / 21)
    torch.testing.assert_close(moments.covariance, torch.cov(flat.T, correction=0))


@pytest.mark.parametrize("columns", [64, 48])
def test_codes_and_scales_survive_the_way_through_the_grid(scheme, columns):
    # zero points need rows of whole blocks
    layer, _ = stored(scheme, columns=64 if scheme.zero_points else columns)
    columns = layer.in_features
    before = layer.dequantize()
    grid = grid_of(layer, torch.randperm(columns))
    store_(layer, grid, values_of(layer, grid), scales_of(layer))
    assert torch.equal(layer.dequantize(), before)


def test_outputs_change_less_than_by_plain_rounding(scheme):
    layer, weight = stored(scheme)
    second = correlated()
    better = compensated(layer, weight, second)
    # every one of these gains more than a quarter; rounding plainly again would gain nothing
    assert error(better, weight, second) < 0.75 * error(layer, weight, second)
    assert better.scheme == layer.scheme
    assert not torch.equal(better.weight, layer.weight)


def test_blocks_that_run_across_rows_gain_too():
    layer, weight = stored(Scheme(), rows=31, columns=48)
    second = correlated(48)
    assert error(compensated(layer, weight, second), weight, second) < 0.75 * error(layer, weight, second)


def test_a_small_change_on_a_quantized_base_is_kept_better_than_by_requantizing():
    base, weight = stored(Scheme())
    change = torch.randn(24, 4) @ torch.randn(4, 64)
    change *= 0.05 * weight.norm() / change.norm()
    second, target = correlated(), base.dequantize() + change
    again = QuantizedLinear.from_float(nn.Linear(64, 24, bias=False), Scheme())
    again.quantize_(target)
    assert error(compensated(base, target, second), target, second) < 0.6 * error(again, target, second)


def test_a_target_that_is_stored_already_stays_as_it_is(scheme):
    layer, _ = stored(scheme)
    same = compensated(layer, layer.dequantize(), correlated())
    torch.testing.assert_close(same.dequantize(), layer.dequantize(), rtol=0, atol=1e-6)


def test_forward_feedback_is_the_error_that_cholesky_weighs():
    second = correlated() + 0.1 * torch.eye(64)
    feedback = forward_feedback(second.double())
    errors = torch.randn(5, 64, dtype=torch.float64)
    # tr(E H E^T) = sum_j d_j (e_j + sum_{k<j} F[j, k] e_k)^2, d_j the variance of column j given all later ones
    passed = errors + errors @ feedback.T
    inverse_tails = [torch.linalg.inv(second.double()[j:, j:])[0, 0] for j in range(64)]
    variances = torch.stack([1 / value for value in inverse_tails])
    torch.testing.assert_close((passed.square() * variances).sum(), ((errors @ second.double()) * errors).sum())


def test_a_descending_pass_never_adds_error():
    layer, weight = stored(Scheme())
    second = correlated()
    grid = grid_of(layer, torch.arange(64))
    values, scales = values_of(layer, grid), grid.spread(scales_of(layer))
    losses = []
    for _ in range(4):
        lost = weight.T - values * scales
        losses.append(float((lost * (second @ lost)).sum()))
        sweep_(values, weight.T, scales, grid, mutual_feedback(second))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_fitted_scales_are_the_least_squares_solution():
    layer, weight = stored(Scheme(blocksize=32, double_quant=False), rows=2)
    second = correlated()
    grid = grid_of(layer, torch.arange(64))
    values, scales = values_of(layer, grid), scales_of(layer)
    fitted = fitted_scales(values, weight.T.contiguous(), scales, grid, second, steps=8)
    for row in range(2):
        # columns of the row's blocks, each with the other's levels zero
        parts = torch.stack([values[:, row] * (grid.blocks_IO[:, row] == 2 * row + block) for block in range(2)])
        exact = torch.linalg.solve(parts @ second @ parts.T, parts @ second @ weight[row])
        torch.testing.assert_close(fitted[2 * row : 2 * row + 2], exact, rtol=1e-3, atol=0)


def test_shapes_that_do_not_fit_are_named():
    layer, weight = stored(Scheme())
    with pytest.raises(FormatError, match="64 input features"):
        compensated(layer, weight, torch.eye(32))
    with pytest.raises(FormatError, match="NaN or Inf"):
        compensated(layer, weight.masked_fill(weight > 0, torch.inf), torch.eye(64))
