"""Norms, gated feed-forwards and rotary embeddings of a loaded transformers model, run as one operation each.

A module keeps its place, name, parameters, children and hooks; what changes is its class, to a subclass of its own with
another forward. That forward uses the module's own wherever the operation has no kernel, and under a compiler. A match
is believed only where a trial shows it: the module's own forward, on a small stand-in with random weights, must give
what the operation gives. So nothing is known of architectures, and weights may be on any device.
"""

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.models.fused_module import Fused, fused_class, suits
from lorasmith.models.fused_rotary import FusedAttention, rotary_rule
from lorasmith.models.joined_layers import joined
from lorasmith.ops import Activation, gated_activation, gated_activation_packed, native, rms_norm
from lorasmith.ops.gated_activation.schema import ACTIVATIONS
from lorasmith.ops.library import NATIVE_KERNELS

logger = logging.getLogger(__name__)

_EPS = ("variance_epsilon", "eps")
_PROJECTIONS = (("gate_proj", "up_proj", "down_proj"), ("gate_up_proj", "down_proj"), ("w1", "w3", "w2"))


@dataclass(frozen=True)
class NormRule:
    """How a norm computes: the attribute that holds its epsilon, and the op's two options."""

    eps: str
    plus_one: bool
    rounds_first: bool


@dataclass(frozen=True)
class FeedForwardRule:
    """How a gated feed-forward computes: its projections, and its other children, which the operation stands for."""

    projections: tuple[str, ...]
    activation: Activation
    bypassed: tuple[tuple[str, type[nn.Module]], ...]


class _FusedNorm(Fused):
    rule: NormRule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The norm of one tensor; anything else goes to the module's own forward."""
        weight = self._parameters.get("weight")
        if len(args) != 1 or kwargs or weight is None or not suits("rms_norm", args[0], weight):
            return super().forward(*args, **kwargs)
        if weight.dtype != args[0].dtype or weight.shape != args[0].shape[-1:]:
            return super().forward(*args, **kwargs)
        rule = self.rule
        eps = getattr(self, rule.eps)
        return rms_norm(args[0], weight, eps, plus_one=rule.plus_one, rounds_first=rule.rounds_first)


class _FusedFeedForward(Fused):
    rule: FeedForwardRule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """down(act(gate(x)) * up(x)); the module's own forward where its activation was replaced or is watched."""
        rule = self.rule
        plain = all(_unwatched(self._modules.get(name), kind) for name, kind in rule.bypassed)
        if len(args) != 1 or kwargs or not plain or not suits("gated_activation", args[0]):
            return super().forward(*args, **kwargs)
        *ins, out = (self._modules[name] for name in rule.projections)
        with joined(ins, args[0]):
            parts = [layer(args[0]) for layer in ins if layer is not None]
        return out(_gated(parts, rule.activation))  # type: ignore[misc]


def fuse_blocks_(model: nn.Module, device: torch.device | None = None) -> list[nn.Module]:
    """Let norms, gated feed-forwards and rotary embeddings of model run as one operation each; returns whose do now.

    device is where model will run, if it is not there yet; one without kernels of ours leaves model as it is, since
    there the operations save memory but no time. Undo it with split_blocks_. Adapters may come before or after it.
    """
    where = device or next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if where.type not in NATIVE_KERNELS["rms_norm"]:
        return []
    fused: list[nn.Module] = []
    left: set[str] = set()
    for module in model.modules():
        if isinstance(module, Fused) or "forward" in vars(module):
            continue
        found = _fusing(module, where)
        if found is not None:
            module.__class__ = fused_class(type(module), *found)  # type: ignore[arg-type]
            fused.append(module)
        elif _looks_like_one(module):
            left.add(type(module).__name__)
    logger.info(
        "run as one operation each: %s; left as they are: %s",
        ", ".join(f"{count} {name}" for name, count in Counter(type(m).__name__ for m in fused).items()) or "none",
        ", ".join(sorted(left)) or "none",
    )
    return fused


def split_blocks_(model: nn.Module) -> None:
    """Give every fused module of model its own class back."""
    for module in model.modules():
        if isinstance(module, Fused):
            module.__class__ = module.own_class


@contextmanager
def fused_blocks(model: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """fuse_blocks_ while the block runs; what was fused before stays so."""
    fused = fuse_blocks_(model, device)
    try:
        yield
    finally:
        for module in fused:
            if isinstance(module, Fused):
                module.__class__ = module.own_class


def _fusing(module: nn.Module, where: torch.device) -> tuple[Any, Any] | None:
    """The class that gives module its other forward on that device, and its rule."""
    norm = _norm_rule(module)
    if norm is not None:
        return _FusedNorm, norm
    feed_forward = _feed_forward_rule(module)
    if feed_forward is not None:
        return _FusedFeedForward, feed_forward
    turning = rotary_rule(module) if where.type in NATIVE_KERNELS["rotary"] else None
    return (FusedAttention, turning) if turning is not None else None


def _unwatched(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    if type(module) is not kind or "forward" in vars(module):
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks)


def _gated(parts: list[Tensor], activation: Activation) -> Tensor:
    if len(parts) == 1:
        return gated_activation_packed(parts[0], activation)
    gate, up = parts
    # projections of different storage may differ in type; autograd's promotion is then the model's own
    wide = torch.promote_types(gate.dtype, up.dtype)
    return gated_activation(gate.to(wide), up.to(wide), activation)


def _looks_like_one(module: nn.Module) -> bool:
    return "RMSNorm" in type(module).__name__ or any(set(names) <= set(module._modules) for names in _PROJECTIONS)


def _norm_rule(module: nn.Module) -> NormRule | None:
    weight = module._parameters.get("weight")
    eps = next((name for name in _EPS if isinstance(vars(module).get(name), float)), None)
    only = len(module._parameters) == 1 and not module._modules and not module._buffers
    if not only or weight is None or weight.dim() != 1 or eps is None:
        return None
    # (plus_one, rounds_first): Llama, Gemma, and the product in f32 of OLMo 2 and gpt-oss
    conventions = ((False, True), (True, False), (False, False))
    rules = [NormRule(eps, plus_one, rounds_first) for plus_one, rounds_first in conventions]
    return next((rule for rule in rules if _norm_agrees(module, rule, weight.shape[0])), None)


def _norm_agrees(module: nn.Module, rule: NormRule, width: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    # rows of large and of tiny values (where epsilon shows), none with a mean of zero
    spread = torch.tensor([[30.0], [1.0], [1e-3]])
    for dtype in native.FLOATS:
        x = ((torch.randn(3, width, generator=generator) + 0.5) * spread).to(dtype)
        weight = (torch.randn(width, generator=generator) + 1).to(dtype)
        stand_in = _shell(module)
        stand_in._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        eps = getattr(module, rule.eps)
        ours = rms_norm(x, weight, eps, plus_one=rule.plus_one, rounds_first=rule.rounds_first)
        if not _agrees(stand_in, x, ours):
            return False
    return True


def _feed_forward_rule(module: nn.Module) -> FeedForwardRule | None:
    names = next((names for names in _PROJECTIONS if set(names) <= set(module._modules)), None)
    others = [
        (name, child) for name, child in module._modules.items() if child is not None and name not in (names or ())
    ]
    if names is None or module._parameters or module._buffers or any([*child.parameters()] for _, child in others):
        return None
    bypassed = tuple((name, type(child)) for name, child in others)
    rules = [FeedForwardRule(names, activation, bypassed) for activation in ACTIVATIONS]
    return next((rule for rule in rules if _feed_forward_agrees(module, rule)), None)


def _feed_forward_agrees(module: nn.Module, rule: FeedForwardRule) -> bool:
    generator = torch.Generator().manual_seed(0)

    def linear(inside: int, outside: int) -> nn.Linear:
        layer = nn.Linear(inside, outside, bias=False, device="meta")
        weight = torch.randn(outside, inside, generator=generator)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer

    stand_in = _shell(module)
    ins = rule.projections[:-1]
    # two inputs or one of twice the width; 4 columns of the model, 64 between
    layers = [linear(4, 128 // len(ins)) for _ in ins]
    down = linear(64, 4)
    stand_in._modules = {name: copy.deepcopy(child) for name, child in _bypassed_children(module, rule)}
    stand_in._modules |= dict(zip(rule.projections, [*layers, down], strict=True))
    stand_in.train()
    x = torch.randn(5, 4, generator=generator)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        ours = down(_gated([layer(x) for layer in layers], rule.activation))
    return _agrees(stand_in, x, ours)


def _bypassed_children(module: nn.Module, rule: FeedForwardRule) -> list[tuple[str, nn.Module]]:
    """The children that the operation stands for."""
    return [(name, module.get_submodule(name)) for name, _ in rule.bypassed]


def _shell(module: nn.Module) -> nn.Module:
    """A copy whose tensors and children can be replaced, without hooks."""
    shell = module.__class__.__new__(module.__class__)
    vars(shell).update(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, dict):
            vars(shell)[name] = type(value)() if name.endswith("_hooks") else copy.copy(value)
    return shell


def _agrees(stand_in: nn.Module, x: Tensor, ours: Tensor) -> bool:
    """Whether the module's own forward gives ours, of ours' type, but for a few f32 roundings or one of bf16."""
    try:
        # random states: a module that draws numbers must not move the run's
        with torch.no_grad(), torch.random.fork_rng([]), torch.autocast("cpu", enabled=False):
            own = stand_in.forward(x)
    except Exception as error:  # any code of a model may fail on a stand-in, in any way
        logger.debug("%s was tried and failed", type(stand_in).__name__, exc_info=error)
        return False
    if not isinstance(own, Tensor) or own.shape != ours.shape or own.dtype != ours.dtype:
        return False
    eps = torch.finfo(own.dtype).eps
    if own.dtype == torch.float32:
        bound = 32 * eps * own.abs().amax(-1, keepdim=True)
        return bool(((own - ours).abs() <= bound).all())
    # one place of the value itself, and that seldom: another order of roundings would differ in many
    apart = (own.float() - ours.float()).abs()
    return bool((apart <= 2 * eps * own.float().abs()).all()) and float((apart > 0).float().mean()) < 0.01
