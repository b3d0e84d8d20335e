"""The ways to put a sum of base and adapter into a number format, by name, and the layers that each of them makes.

requantize   Q + dW rounded number by number, with new scales: what PEFT does
round        W + dW rounded number by number, W being the 16-bit weight
compensate   Q + dW, or W + dW, rounded so that outputs change least (quantized/rounding)
exact        into the zero points of the base's blocks, where the adapter's update is constant over them (QA-LoRA)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lorasmith.attach import Adapted, bare, compensated_layer, exact_layer, merged_sum, rounded_layer
from lorasmith.data import Batch
from lorasmith.errors import MergeError
from lorasmith.evaluation import Kept, input_moments, layer_error, layer_kept
from lorasmith.methods import layer_spec
from lorasmith.quantized import Moments, QuantizedLinear, Scheme

MergeMethod = Literal["auto", "exact", "requantize", "round", "compensate"]
# bytes of moments that are collected at a time; a layer of 4096 inputs takes 2 x 64 MiB
MOMENT_BYTES = 2 << 30


@dataclass
class Candidate:
    """One way of merging: its layers by path, and what each adapted one keeps on inputs it was not calibrated on.

    to_16bit is how far the outputs of each are from those of the adapter on the 16-bit weight, in units of what plain
    quantizing costs without an adapter; empty where that weight is not at hand.
    """

    name: str
    layers: dict[str, nn.Module] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    to_16bit: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MergePlan:
    """What is to be stored how: model with one acting adapter, linear layers by path, their scheme, the 16-bit weights.

    source gives the 16-bit weight [out, in] of a layer by its path; None where the base is dense itself, or where its
    16-bit weights are not at hand.
    """

    model: nn.Module
    adapter: str
    paths: Sequence[str]
    scheme: Scheme
    source: Callable[[str], Tensor] | None

    @property
    def quantized(self) -> bool:
        """Whether the base stores these layers quantized."""
        return any(isinstance(bare(self.model.get_submodule(path)), QuantizedLinear) for path in self.paths)

    @property
    def exact(self) -> bool:
        """Whether every adapted layer can take the adapter up without rounding."""
        layers = [self.model.get_submodule(path) for path in self.paths]
        adapted = [layer for layer in layers if isinstance(layer, Adapted)]
        return all(exact_layer(layer, [self.adapter], self.scheme) is not None for layer in adapted)

    def names(self, method: MergeMethod) -> list[str]:
        """The candidates that method asks for. Raises MergeError for one that this base does not allow."""
        if method in ("auto", "exact") and self.exact:
            return ["exact"]
        if method == "exact":
            raise MergeError(
                "--method exact needs a base with zero points in the format merged into, and QA-LoRA in groups of "
                "whole blocks (use_qalora, qalora_group_size); take --method auto"
            )
        from_base = ["requantize", "compensate"] if self.quantized else []
        from_source = ["round", "compensate from 16 bits"] if self.source or not self.quantized else []
        every = from_base + from_source
        chosen = every if method == "auto" else [name for name in every if name.split()[0] == method]
        if method == "requantize" and not self.quantized:
            raise MergeError("--method requantize: the base is not quantized, so there is nothing to requantize; round")
        if not chosen:
            raise MergeError(f"--method {method} needs the 16-bit base; name it with --base-16bit")
        return chosen


def build_candidates(
    plan: MergePlan, names: Sequence[str], calibration: Sequence[Batch], measured: Sequence[Batch]
) -> list[Candidate]:
    """The layers of every candidate; moments are collected for as many layers at a time as memory is set aside for."""
    candidates = [Candidate(name) for name in names]
    for paths in _groups(plan):
        layers = {path: plan.model.get_submodule(path) for path in paths}
        watched = {path: (layer, width_of(layer)) for path, layer in layers.items()}
        moments = input_moments(plan.model, watched, calibration)
        others = input_moments(plan.model, watched, measured)
        for path, layer in layers.items():
            seen = moments.get(path)
            for candidate in candidates:
                _add(plan, candidate, path, layer, seen, others.get(path))
    return candidates


def _add(
    plan: MergePlan, candidate: Candidate, path: str, layer: nn.Module, seen: Moments | None, other: Moments | None
) -> None:
    base = bare(layer)
    if not isinstance(layer, Adapted) and isinstance(base, QuantizedLinear) and base.scheme == plan.scheme:
        return
    summed = merged_sum(layer, [plan.adapter], _source(plan, candidate, path))
    # a layer that no token of the text reached (an expert) is rounded plainly
    exact = exact_layer(layer, [plan.adapter], plan.scheme) if candidate.name == "exact" else None
    if exact is not None:
        made = exact
    elif candidate.name in ("requantize", "round") or seen is None or seen.rows == 0:
        made = rounded_layer(layer, summed, plan.scheme, path)
    else:
        made = compensated_layer(layer, summed, plan.scheme, seen, path, candidate.name == "compensate")
    candidate.layers[path] = made
    if isinstance(layer, Adapted) and other is not None and other.rows:
        _measure(plan, candidate, path, layer, made, other)


def _source(plan: MergePlan, candidate: Candidate, path: str) -> Tensor | None:
    if plan.source is None or candidate.name in ("requantize", "compensate"):
        return None
    return plan.source(path)


def _measure(
    plan: MergePlan, candidate: Candidate, path: str, layer: Adapted, made: QuantizedLinear, moments: Moments
) -> None:
    """Note what the layer that was made keeps, and how far it is from 16 bits."""
    summed = merged_sum(layer, [plan.adapter])
    base = _with_bias(summed.base_weight, summed.base_bias)
    merged = _with_bias(made.dequantize(torch.float32), made.bias)
    candidate.kept[path] = layer_kept(_with_bias(summed.weight, summed.bias) - base, merged - base, moments)
    if plan.quantized and plan.source is None:
        return
    exact = merged_sum(layer, [plan.adapter], plan.source(path) if plan.source else None)
    stored = summed.base_weight
    plain = stored if plan.source else _plainly_stored(stored, plan.scheme)
    weight = plan.source(path).to(stored) if plan.source else stored
    unit = layer_error(_with_bias(plain - weight, None), moments)
    lost = layer_error(merged - _with_bias(exact.weight, exact.bias), moments)
    candidate.to_16bit[path] = math.sqrt(lost / unit) if unit else 0.0


def _plainly_stored(weight: Tensor, scheme: Scheme) -> Tensor:
    layer = QuantizedLinear(weight.shape[1], len(weight), False, scheme, device=weight.device)
    layer.quantize_(weight)
    return layer.dequantize()


def _with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[O, I + 1], the bias behind the weight."""
    column = weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)
    return torch.cat([weight, column[:, None]], dim=1)


def _groups(plan: MergePlan) -> Iterator[list[str]]:
    """The paths in stretches whose moments, of both texts, fit into MOMENT_BYTES."""
    group: list[str] = []
    used = 0
    for path in plan.paths:
        size = 2 * 4 * width_of(plan.model.get_submodule(path)) ** 2
        if group and used + size > MOMENT_BYTES:
            yield group
            group, used = [], 0
        group.append(path)
        used += size
    if group:
        yield group


def width_of(layer: nn.Module) -> int:
    """The input features of a linear layer, adapted or not."""
    spec = layer_spec(bare(layer))
    assert spec is not None
    return spec.in_features
