"""Dense linear layers in 16 bits, run as one operation each while a model generates on a CPU.

Heads and other layers that stay dense: PyTorch's products in 16 bits are slow on a CPU without instructions for them
(ops/precision.py). A module keeps its place, name, parameters and hooks; what changes is its class, while a block runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorasmith.ops.narrow_linear.schema import narrow_linear
from lorasmith.ops.precision import product_dtype


class NarrowLinear(nn.Linear):
    """A linear layer that multiplies in product_dtype where no gradient is asked for."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in_features] -> [..., out_features]."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        alike = input.dtype == self.weight.dtype and input.device == self.weight.device
        if torch.is_grad_enabled() or traced or not alike or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        return narrow_linear(input, self.weight, self.bias)


PLAIN_LINEARS: tuple[type[nn.Module], ...] = (nn.Linear, NarrowLinear)
"""The exact types of linear layers that do nothing more."""


@contextmanager
def narrow_linears(model: nn.Module) -> Iterator[None]:
    """While the block runs, the dense linear layers of model that this device multiplies slowly are NarrowLinear."""
    found = [module for module in model.modules() if type(module) is nn.Linear and _slow(module)]
    try:
        for module in found:
            module.__class__ = NarrowLinear
        yield
    finally:
        for module in found:
            if type(module) is NarrowLinear:
                module.__class__ = nn.Linear  # type: ignore[assignment]


def _slow(module: nn.Linear) -> bool:
    # what replaces a module's weight or forward (accelerate, a tensor subclass) knows no other forward than its own
    weight = module._parameters.get("weight")
    if type(weight) is not nn.Parameter or "forward" in vars(module):
        return False
    # PyTorch's product of a few rows in f16 is faster than widening the weight
    return weight.dtype == torch.bfloat16 and product_dtype(weight.dtype, weight.device) != weight.dtype
