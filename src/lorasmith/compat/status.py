"""The status reports by PEFT's functions."""

from torch import nn

from lorasmith.attach import TunerLayerStatus, TunerModelStatus, layer_status, model_status
from lorasmith.compat.peft_model import PeftModel

__all__ = ["TunerLayerStatus", "TunerModelStatus", "get_layer_status", "get_model_status"]


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """The status of every adapted module of a model, wrapped or not."""
    return model.get_layer_status() if isinstance(model, PeftModel) else layer_status(model)


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """The status of all adapters of a model, wrapped or not."""
    return model.get_model_status() if isinstance(model, PeftModel) else model_status(model)
