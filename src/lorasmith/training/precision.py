"""In which precision activations are computed."""

import torch
from torch import Tensor, nn

from lorasmith.training.settings import Precision


def autocast_dtype(model: nn.Module, precision: Precision) -> torch.dtype | None:
    """What autocast runs in: bf16 where asked for, or where auto finds bf16 weights; None for the weights' own.

    Autocast, because frozen bf16 layers, f32 adapters and f32 norms then meet in one dtype; trained weights stay f32,
    and a frozen weight that is bf16 already is not copied.
    """
    if precision == "auto":
        return torch.bfloat16 if any(p.dtype == torch.bfloat16 for p in model.parameters()) else None
    return torch.bfloat16 if precision == "bf16" else None


def computing(parameter: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """The context in which forwards of a run compute, on the device of parameter; dtype as autocast_dtype gives it."""
    return torch.autocast(parameter.device.type, dtype, enabled=dtype is not None)
