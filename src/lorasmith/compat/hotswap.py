"""Swapping adapters in place, by PEFT's functions; a compiled model is not compiled again."""

import logging
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lorasmith.attach import adapters_of, read_adapter, swap_, widen_
from lorasmith.compat.adapter_folder import adapter_folder
from lorasmith.compat.peft_model import bare_model
from lorasmith.errors import AttachError
from lorasmith.methods.lora import LoraConfig

log = logging.getLogger(__name__)


def prepare_model_for_compiled_hotswap(
    model: nn.Module,
    *,
    target_rank: int | None = None,
    config: LoraConfig | dict[str, LoraConfig] | None = None,
    check_compiled: Literal["error", "warn", "ignore"] = "error",
) -> None:
    """Make room for adapters of up to target_rank, before the model is compiled; without it nothing has to be done.

    Scalings go into B on swapping, so none has to become a tensor. The model's configs, and those given, say the new
    rank with a scaling of 1. Raises AttachError for a model that is compiled already, unless check_compiled says
    otherwise, and for one without LoRA.
    """
    if check_compiled not in ("error", "warn", "ignore"):
        raise AttachError(f"check_compiled={check_compiled!r} is not one of error, warn, ignore")
    if _inside(model) is not model or getattr(model, "_compiled_call_impl", None) is not None:
        said = "the model is compiled already and will be compiled again; prepare it for swapping before"
        if check_compiled == "error":
            raise AttachError(said)
        if check_compiled == "warn":
            log.warning(said)
    inner = bare_model(_inside(model))
    if not any(isinstance(own, LoraConfig) for own in adapters_of(inner).configs.values()):
        raise AttachError("the model has no LoRA adapter; load the first one before you prepare for swapping")
    if target_rank is None:
        return
    widen_(inner, target_rank)
    given = config.values() if isinstance(config, dict) else [config] if config is not None else []
    for each in given:
        each.r, each.lora_alpha, each.use_rslora = target_rank, target_rank, False
        each.rank_pattern, each.alpha_pattern = {}, {}


def hotswap_adapter(
    model: nn.Module, model_name_or_path: str | Path, adapter_name: str, torch_device: str | None = None, **hub: Any
) -> None:
    """Give the adapter of this name the weights in a folder or hub repository, in place.

    torch_device changes nothing: the weights go where those are that they replace. Raises AttachError for an adapter
    that does not fit into what is there; then nothing is changed.
    """
    content = read_adapter(adapter_folder(model_name_or_path, **hub))
    swap_(bare_model(_inside(model)), content, adapter_name)


def _inside(model: nn.Module) -> nn.Module:
    """The model that torch.compile wrapped, or model itself."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model
