"""How the weights of a checkpoint are stored, or are to be stored on loading."""

from typing import Any

import torch

from lorasmith.errors import ModelError
from lorasmith.models.checkpoint import Checkpoint, method_of, quantization_of
from lorasmith.models.quantization_config import METHOD, QuantizationConfig, torch_dtype
from lorasmith.models.tensor_file import StoredTensor
from lorasmith.quantized import Scheme
from lorasmith.quantized.bitsandbytes_keys import read_quant_state, scheme_of


def stored_config(checkpoint: Checkpoint) -> QuantizationConfig | None:
    """Our config for a checkpoint that is quantized already, by us or by bitsandbytes; None for a dense one.

    Raises ModelError where it says bitsandbytes but holds no quantized weight.
    """
    stored = quantization_of(checkpoint.config)
    if stored is None:
        return None
    if method_of(stored) == METHOD:
        return QuantizationConfig.from_dict(stored)
    fields: dict[str, Any] = {"skip_modules": stored.get("llm_int8_skip_modules")}
    if stored.get("load_in_8bit"):
        return QuantizationConfig("int8", int8_threshold=stored.get("llm_int8_threshold", 6.0), **fields)
    # float32 is their default, not a wish; the input's type is faster
    compute_dtype = torch_dtype(stored.get("bnb_4bit_compute_dtype"))
    fields["compute_dtype"] = None if compute_dtype == torch.float32 else compute_dtype
    return QuantizationConfig.from_scheme(_first_scheme(checkpoint), **fields)


def _first_scheme(checkpoint: Checkpoint) -> Scheme:
    # their config names no block size; the state beside every weight does
    key = next((name for name in checkpoint.tensors if ".weight.quant_state.bitsandbytes__" in name), None)
    if key is None:
        raise ModelError(f"{checkpoint.folder} says bitsandbytes, but no weight has a quant_state; it is incomplete")
    state = {key[key.index("weight.quant_state") :]: checkpoint.tensors[key].read()}
    return scheme_of(read_quant_state(state, key))


def wanted_config(
    checkpoint: Checkpoint, scheme: Scheme | None, skip: tuple[str, ...], compute_dtype: torch.dtype | None
) -> QuantizationConfig | None:
    """The config to load with: the checkpoint's own, or one for scheme; None for a dense model.

    Raises ModelError where the checkpoint is stored in another scheme than the one asked for, or is to leave layers
    dense that it holds quantized.
    """
    config = stored_config(checkpoint)
    if config is None:
        if scheme is None:
            return None
        return QuantizationConfig.from_scheme(scheme, skip_modules=list(skip), compute_dtype=compute_dtype)
    if scheme is not None and scheme != config.scheme:
        raise ModelError(
            f"{checkpoint.folder} is already stored in {config.scheme}, not {scheme}; "
            "load it as it is stored (quantization: none), or take the 16-bit model"
        )
    if skip:
        raise ModelError(
            f"{checkpoint.folder} is stored quantized already, so skip={list(skip)} says nothing to it; leave "
            "quantization.skip out, or take the 16-bit model"
        )
    config.compute_dtype = compute_dtype or config.compute_dtype
    return config


def readable(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors, those that bitsandbytes stored as floats (quant_storage) seen as the bytes that they are."""
    return {name: tensor.as_bytes() if f"{name}.absmax" in tensors else tensor for name, tensor in tensors.items()}
