"""Storing a matrix in a number format so that the layer's output changes least.

Minimizes ||(T - Q) X||^2 over codes and scales, with T the target [out, in], Q what is stored, X the layer's inputs,
known by their second moments H = X X^T. First one pass of error compensation (GPTQ, arXiv 2210.17323) over the columns
in falling order of H's diagonal, then rounds of least squares over the scales and of coordinate descent over the codes
(QuantEase, arXiv 2309.01885). A row that this does not better stays as it was.

I in_features, O out_features, K blocks.
"""

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lorasmith.errors import FormatError
from lorasmith.quantized.rounding.grid import Grid, grid_of, scales_of, storable, store_, values_of, zeros_of
from lorasmith.quantized.rounding.scales import fitted_scales
from lorasmith.quantized.rounding.sweep import forward_feedback, mutual_feedback, sweep_
from lorasmith.quantized.weight import QuantizedWeight

W = TypeVar("W", bound=QuantizedWeight)

# share of the diagonal's mean that is added to it: what the calibration text did not excite is not free to change
DAMPING = 0.01
ROUNDS = 4
# rounds end once one lowers the error by less than this share
_LEAST_GAIN = 0.01


@dataclass(frozen=True)
class _Problem:
    """A target on a grid, its columns in the grid's order, and the moments that errors are weighed by."""

    layer: QuantizedWeight
    grid: Grid
    target_IO: Tensor
    hessian: Tensor
    mutual: Tensor

    def losses(self, values_IO: Tensor, scales_K: Tensor) -> Tensor:
        """The error of each row, [O]."""
        errors_IO = self.target_IO - values_IO * self.grid.spread(scales_K)
        return (errors_IO * (self.hessian @ errors_IO)).sum(dim=0)


@torch.no_grad()
def compensated(layer: W, target: Tensor, second: Tensor, rounds: int = ROUNDS) -> W:
    """A copy of layer that stores target [out, in] with the least error on inputs of second moments second [in, in].

    layer is where the search starts from: a base that target is near to, or target rounded plainly. Everything of its
    storage but codes and scales stays; nested scales keep their offset and their own scales.
    Raises FormatError for a layer that is no matrix, and for shapes that do not fit.
    """
    _check(layer, target, second)
    order = second.diagonal().argsort(descending=True)
    problem = _problem(layer, target, second, order)
    before, scales = values_of(layer, problem.grid), scales_of(layer)
    values = before.clone()
    feedback = forward_feedback(problem.hessian)
    sweep_(values, problem.target_IO, problem.grid.spread(scales), problem.grid, feedback)
    found = [(before, scales), _descend(problem, values, scales, rounds)]
    stored = copy.deepcopy(layer)
    store_(stored, problem.grid, *_best_rows(problem, found))
    return stored


def _check(layer: QuantizedWeight, target: Tensor, second: Tensor) -> None:
    if len(layer.shape) != 2 or tuple(target.shape) != layer.shape:
        raise FormatError(f"target {list(target.shape)} does not fit a layer of {list(layer.shape)}; give a matrix")
    if tuple(second.shape) != (layer.shape[1], layer.shape[1]):
        raise FormatError(f"moments {list(second.shape)} do not fit {layer.shape[1]} input features")
    if not bool(torch.isfinite(target).all()) or not bool(torch.isfinite(second).all()):
        raise FormatError("the target or the moments of the inputs hold NaN or Inf; check adapter and calibration text")


def _problem(layer: QuantizedWeight, target: Tensor, second: Tensor, order: Tensor) -> _Problem:
    hessian = second.float()[order][:, order]
    # a layer whose inputs are all zero loses nothing, but has to be factored
    damping = DAMPING * hessian.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    hessian.diagonal().add_(damping)
    grid = grid_of(layer, order)
    target_IO = target.float()[:, order].T.contiguous()
    zeros_IO = zeros_of(layer, grid)
    if zeros_IO is not None:
        target_IO -= zeros_IO
    return _Problem(layer, grid, target_IO, hessian, mutual_feedback(hessian))


def _descend(problem: _Problem, values_IO: Tensor, scales_K: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Codes and scales in turn until neither gains; the scales are always such as can be stored."""
    loss = problem.losses(values_IO, scales_K).sum()
    best = values_IO.clone(), scales_K
    for _ in range(rounds):
        fitted = fitted_scales(values_IO, problem.target_IO, scales_K, problem.grid, problem.hessian)
        scales_K = storable(problem.layer, fitted)
        sweep_(values_IO, problem.target_IO, problem.grid.spread(scales_K), problem.grid, problem.mutual)
        before, loss = loss, problem.losses(values_IO, scales_K).sum()
        if loss < before:
            best = values_IO.clone(), scales_K
        if loss > before * (1 - _LEAST_GAIN):
            break
    return best


def _best_rows(problem: _Problem, found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Each row from where its error is least; whole where blocks run across rows and tie them together."""
    losses = torch.stack([problem.losses(*one) for one in found])
    layer = problem.layer
    if not layer.rowwise and layer.shape[1] % layer.scheme.blocksize:
        return found[int(losses.sum(dim=1).argmin())]
    chosen = losses.argmin(dim=0)
    rows = torch.arange(layer.shape[0], device=chosen.device)
    values_IO = torch.stack([values for values, _ in found])[chosen, :, rows].T.contiguous()
    scales = torch.stack([scales for _, scales in found]).view(len(found), layer.shape[0], -1)
    return values_IO, scales[chosen, rows].reshape(-1)
