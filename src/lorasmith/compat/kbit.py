"""`prepare_model_for_kbit_training` without its price: nothing is upcast."""

import logging
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lorasmith.models.activation_checkpointing import checkpoint_activations_
from lorasmith.models.adopt import adopt_bitsandbytes_

log = logging.getLogger(__name__)


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    **unused: Any,
) -> nn.Module:
    """Freeze model, take over layers of bitsandbytes, and switch non-reentrant checkpointing on.

    PEFT also casts every other 16-bit parameter to float32; the norms compute in float32 anyway, and the copies of
    embedding and head only cost memory, so nothing is cast here.
    """
    adopt_bitsandbytes_(model)
    model.requires_grad_(False)
    if use_gradient_checkpointing and isinstance(model, PreTrainedModel) and model.supports_gradient_checkpointing:
        if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            log.warning(
                "use_reentrant=True is ignored: it drags gradients through frozen layers; non-reentrant is used"
            )
        checkpoint_activations_(model)
    return model


def prepare_model_for_int8_training(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """The name of PEFT's early days for prepare_model_for_kbit_training."""
    return prepare_model_for_kbit_training(model, *args, **kwargs)
