"""In which precision activations are computed."""

import torch
from torch import Tensor, nn

from lorasmith.training.loss_scale import LossScale
from lorasmith.training.settings import Precision

_ASKED = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def autocast_dtype(model: nn.Module, precision: Precision) -> torch.dtype | None:
    """What autocast runs in: 16 bits where asked for, or where auto finds such weights; None for the weights' own.

    Autocast, because frozen bf16 layers, f32 adapters and f32 norms then meet in one dtype; trained weights stay f32,
    and a frozen weight that is in 16 bits already is not copied. float16 is trained with a scale on the loss.
    """
    if precision == "auto":
        found = {parameter.dtype for parameter in model.parameters()}
        return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in found), None)
    return _ASKED[precision]


def loss_scale(dtype: torch.dtype | None) -> LossScale | None:
    """A fresh scale for the loss of a run whose activations are in dtype; None where none is needed."""
    return LossScale() if dtype == torch.float16 else None


def computing(parameter: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """The context in which forwards of a run compute, on the device of parameter; dtype as autocast_dtype gives it."""
    return torch.autocast(parameter.device.type, dtype, enabled=dtype is not None)
