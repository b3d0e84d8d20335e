"""Types of a model's parameters, by PEFT's function."""

import torch
from torch import nn


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the frozen floating-point parameters to dtype and those that train to float32, in place.

    Quantized weights are bytes and stay; PEFT casts these too.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
