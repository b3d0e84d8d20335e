"""Layers that hold the sum of a base weight and its adapters in a number format.

T is the sum [out, in]. What rounds it is chosen here; whether enough of the adapter is left is for whoever measures it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.attach.adapted import Adapted
from lorasmith.methods import dense_weight, layer_spec
from lorasmith.quantized import Moments, QuantizedLinear, Scheme, compensated

# a sum this near to its base, relative to it, is searched for from the base's codes and scales; further away new scales
# do as well (measured at 0.2) and fit weights that the old ones clip
NEAR = 0.2


@dataclass(frozen=True)
class MergedSum:
    """What a linear layer computes with its adapters and without: f32 weights [out, in], biases [out] or None."""

    weight: Tensor
    bias: Tensor | None
    base_weight: Tensor
    base_bias: Tensor | None


@torch.no_grad()
def merged_sum(module: nn.Module, adapters: list[str], source: Tensor | None = None) -> MergedSum:
    """The sum of a module, adapted or not, and these adapters.

    source [out, in] stands in for the base's weight in the sum, though not in base_weight: the weight that a quantized
    base was made from. Raises AttachError for a module without a weight.
    """
    base = bare(module)
    own = dense_weight(base, torch.float32)
    start = own if source is None else source.float().to(own.device)
    bias = base._parameters.get("bias")
    base_bias = None if bias is None else bias.detach().float()
    if not isinstance(module, Adapted):
        return MergedSum(start, base_bias, own, base_bias)
    weight, merged_bias = module.deltas(adapters, start)
    return MergedSum(weight, merged_bias, own, base_bias)


def bare(module: nn.Module) -> Any:
    """The base's own module inside the wrapper of adapters, or module itself."""
    return module.base_layer if isinstance(module, Adapted) else module


@torch.no_grad()
def rounded_layer(module: nn.Module, summed: MergedSum, scheme: Scheme, name: str) -> QuantizedLinear:
    """The sum in scheme, each number rounded by itself; name stands in errors."""
    layer = _empty_like(bare(module), summed.bias, scheme)
    layer.quantize_(summed.weight, name)
    layer.dtype = _dtype(bare(module))
    return layer


@torch.no_grad()
def compensated_layer(
    module: nn.Module, summed: MergedSum, scheme: Scheme, moments: Moments, name: str, from_base: bool
) -> QuantizedLinear:
    """The sum in scheme so that outputs change least on inputs of these moments; a bias takes up the mean error.

    from_base starts from the codes of a base that is stored in scheme and near to the sum; else, and for any other
    base, the sum is rounded plainly first. name stands in errors.
    """
    base = bare(module)
    near = (summed.weight - summed.base_weight).norm() <= NEAR * summed.base_weight.norm()
    if from_base and near and isinstance(base, QuantizedLinear) and base.scheme == scheme:
        start = _copied(base, summed.bias)
    else:
        start = rounded_layer(module, summed, scheme, name)
    layer = compensated(start, summed.weight, moments.second if summed.bias is None else moments.covariance)
    if layer.bias is not None and summed.bias is not None:
        lost = (summed.weight - layer.dequantize(torch.float32)) @ moments.mean
        layer.bias.data.copy_(summed.bias + lost)
    return layer


@torch.no_grad()
def exact_layer(module: nn.Module, adapters: list[str], scheme: Scheme) -> QuantizedLinear | None:
    """The base's own layer with the adapters' updates in its zero points and bias, which loses nothing.

    None where the base has no zero points, is stored in another scheme, or an update is not constant over its blocks.
    """
    base = bare(module)
    if not isinstance(base, QuantizedLinear) or base.scheme != scheme or not isinstance(module, Adapted):
        return None
    zeros = base.zero_values()
    sites = [module.sites[name] for name in adapters if name in module.sites]
    updates = [site.grouped_delta() for site in sites]
    grouped = [update for update in updates if update is not None and update[1] % scheme.blocksize == 0]
    if zeros is None or len(grouped) < len(sites):
        return None
    summed = zeros.clone()
    for delta, group in grouped:
        summed += delta.to(zeros).repeat_interleave(group // scheme.blocksize, dim=1)
    _, bias = module.deltas(adapters)
    layer = _copied(base, bias)
    layer.zeros = nn.Parameter(summed.reshape(-1).view(torch.uint8), requires_grad=False)
    return layer


def _copied(base: QuantizedLinear, bias: Tensor | None) -> QuantizedLinear:
    layer = _empty_like(base, bias, base.scheme)
    for part, stored in base.stored.items():
        setattr(layer, part, nn.Parameter(stored.detach().clone(), requires_grad=False))
    layer.dtype = base.dtype
    return layer


def _empty_like(base: Any, bias: Tensor | None, scheme: Scheme) -> QuantizedLinear:
    spec = layer_spec(base)
    assert spec is not None
    quantized = isinstance(base, QuantizedLinear)
    layer = QuantizedLinear(
        spec.in_features,
        spec.out_features,
        False,
        scheme,
        dtype=_dtype(base),
        compute_dtype=base.compute_dtype if quantized else None,
        device="meta",
    )
    if quantized:
        layer.int8_threshold = base.int8_threshold
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(_dtype(base), copy=True), requires_grad=False)
    return layer


def _dtype(base: Any) -> torch.dtype:
    return base.dtype if isinstance(base, QuantizedLinear) else base.weight.dtype
