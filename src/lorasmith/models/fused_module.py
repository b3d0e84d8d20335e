"""A module whose class is a subclass of its own, with another forward: what all fused modules share.

A module keeps its place, name, parameters, children and hooks; what changes is its class, as FSDP2 does it.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lorasmith.ops import gpu, native
from lorasmith.ops.library import NATIVE_KERNELS
from lorasmith.ops.stand_in import meant

# the types that the kernels of a device read
_FLOATS = {"cpu": native.FLOATS, "cuda": gpu.FLOATS}

# without gradients, a call of an op takes longer than it saves on fewer elements (a token's, in generation)
_FEWEST = 1 << 15


class Fused(nn.Module):
    """A module with another forward; kind is the class that holds it, own_class the module's class without us."""

    kind: Any
    own_class: Any
    rule: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        # a class that was made here has no name to be pickled by
        reduced: tuple[Any, ...] = super().__reduce_ex__(protocol)  # type: ignore[assignment]
        return _empty, (self.own_class, self.kind, self.rule), *reduced[2:]


@cache
def fused_class(own: Any, kind: Any, rule: Any) -> type[nn.Module]:
    """A subclass of own, called as it, whose forward is kind's by rule."""
    contents = {"own_class": own, "kind": kind, "rule": rule, "__module__": own.__module__}
    return type(own.__name__, (kind, own), contents)


def suits(op: str, x: Any, *beside: Any) -> bool:
    """Whether the op's kernel serves x as it is, outside of any compiler, and pays, with tensors beside it."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if not all(isinstance(given, Tensor) and not is_traceable_wrapper_subclass(given) for given in (x, *beside)):
        return False
    device = meant(x.device)
    if device not in NATIVE_KERNELS[op] or x.dtype not in _FLOATS[device]:
        return False
    enough = torch.is_grad_enabled() or x.numel() >= _FEWEST
    return enough and all(tensor.device == x.device for tensor in beside)


def _empty(own: Any, kind: Any, rule: Any) -> nn.Module:
    made = fused_class(own, kind, rule)
    return made.__new__(made)
