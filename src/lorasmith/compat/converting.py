"""Other methods as LoRA, by PEFT's functions."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorasmith.attach import as_lora, write_adapter
from lorasmith.compat.peft_model import bare_model
from lorasmith.methods import AdapterConfig


def convert_to_lora(
    model: nn.Module,
    rank: int | float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: dict[str, Any] | None = None,
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """The config and the tensors, in PEFT's file keys, of the LoRA adapter that is nearest to an adapter of model.

    rank is one for all modules, or the share in (0, 1] of the squared singular values that each keeps. progressbar and
    compile_kwargs change nothing: what takes the time is the decomposition. Raises AttachError for an adapter that is
    no change of weights.
    """
    content = as_lora(bare_model(model), adapter_name, rank)
    return content.config, dict(content.state)


def save_as_lora(
    path: str | Path,
    model: nn.Module,
    rank: int | float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: dict[str, Any] | None = None,
) -> None:
    """Write what convert_to_lora gives into the folder path."""
    write_adapter(as_lora(bare_model(model), adapter_name, rank), path)
