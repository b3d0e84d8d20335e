"""Taking over the layers of bitsandbytes without requantizing them.

bitsandbytes is never imported: its layers are known by the module and the name of their class, and what is read off
them are its public attributes (0.50: `nn/modules.py`, `functional.py`).

On a CPU with AVX-512 its first evaluation forward rearranges a 4-bit weight in place, rounds the scales to bfloat16
and drops double quantization. The codes are put back in order exactly; the rounded scales are what that layer has
computed with since, and they are kept as they are, without double quantization.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorasmith.errors import ModelError
from lorasmith.models.placement import linears
from lorasmith.models.quantization_config import QuantizationConfig
from lorasmith.models.quantizer import LorasmithQuantizer, forget_takeover_
from lorasmith.quantized import QuantizedLinear, Scheme
from lorasmith.quantized.bitsandbytes_keys import fill

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 32
_HALF = 32


def adopt_bitsandbytes_(model: nn.Module) -> int:
    """Replace every Linear4bit and Linear8bitLt of model by ours, bit for bit; returns how many there were.

    Raises ModelError, naming the layer, for one that is not quantized yet or keeps 16-bit weights.
    """
    found = [(name, module, _kind(module)) for name, module in model.named_modules()]
    layers = [(name, module, kind) for name, module, kind in found if kind]
    unpacked = 0
    for name, module, kind in layers:
        unpacked += bool(getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False))
        twin = _from_4bit(module, name) if kind == "Linear4bit" else _from_8bit(module, name)
        twin.train(module.training)
        model.set_submodule(name, twin)
    if unpacked:
        logger.warning(
            "%d layers had been rearranged by bitsandbytes for evaluation on the CPU: their scales are the rounded "
            "ones it computes with; load the model anew and adopt it before the first forward to keep the exact ones",
            unpacked,
        )
    if layers and isinstance(model, PreTrainedModel):
        _own_(model)
    return len(layers)


def _kind(module: nn.Module) -> str | None:
    for base in type(module).__mro__:
        if base.__module__.partition(".")[0] == "bitsandbytes" and base.__name__ in ("Linear4bit", "Linear8bitLt"):
            return base.__name__
    return None


def _empty(module: Any, scheme: Scheme, dtype: torch.dtype, compute_dtype: torch.dtype | None) -> QuantizedLinear:
    twin = QuantizedLinear(
        module.in_features,
        module.out_features,
        module.bias is not None,
        scheme,
        dtype=dtype,
        compute_dtype=compute_dtype,
        device="meta",
    )
    if module.bias is not None:
        twin.bias = nn.Parameter(module.bias.detach(), requires_grad=module.bias.requires_grad)
    return twin


def _from_4bit(module: Any, name: str) -> QuantizedLinear:
    state = getattr(module.weight, "quant_state", None) or module.quant_state
    if state is None:
        raise ModelError(f"{name} is a Linear4bit that was never quantized; move the model to its device first")
    codes = module.weight.detach()
    scales = state.absmax
    if getattr(state, "packing_format_for_cpu", False):
        codes, scales = _unpack(codes, state.shape), state.absmax.T.float()
        dtype = state.original_dtype
    else:
        dtype = state.dtype
    scheme = Scheme(state.quant_type, state.blocksize, bool(state.nested))
    twin = _empty(module, scheme, dtype, module.compute_dtype)
    parts = {"weight": codes, "scales": scales if state.nested else scales.float()}
    if state.nested:
        offset = state.offset.reshape(1).float()
        parts |= {"nested_scales": state.state2.absmax.float(), "nested_offset": offset}
    fill(twin, parts, name)
    return twin


def _unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Codes in row-major order, uint8 [N * K / 2], from bitsandbytes' CPU arrangement.

    There 32 rows stand together, column pair by column pair: 64 codes (row, even or odd column), of which the first
    32 are the low nibbles of 32 bytes and the last 32 the high ones.
    """
    rows, columns = shape
    groups = packed.reshape(-1, _HALF)
    codes = torch.cat([groups & 0xF, groups >> 4], dim=1)
    codes = codes.reshape(rows // _BLOCK_ROWS, columns // 2, _BLOCK_ROWS, 2).transpose(1, 2).reshape(-1, 2)
    return (codes[:, 0] << 4) | codes[:, 1]


def _from_8bit(module: Any, name: str) -> QuantizedLinear:
    if module.state.has_fp16_weights:
        raise ModelError(f"{name} is a Linear8bitLt with 16-bit weights; load the model without quantization instead")
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    if scales is None or module.weight.dtype != torch.int8:
        raise ModelError(f"{name} is a Linear8bitLt that was never quantized; move the model to its device first")
    twin = _empty(module, Scheme("int8"), torch.float16, None)
    if module.state.threshold > 0:
        twin.int8_threshold = module.state.threshold
    else:
        # 0 switches the decomposition off there
        twin.int8_threshold = float("inf")
    fill(twin, {"weight": module.weight.detach(), "scales": scales.float()}, name)
    return twin


def _own_(model: Any) -> None:
    """Let the model say that its layers are ours, so that saving writes them as ours."""
    scheme = next(module.scheme for module in model.modules() if isinstance(module, QuantizedLinear))
    config = QuantizationConfig.from_scheme(scheme, skip_modules=[name for name, _ in linears(model)])
    model.config.quantization_config = config
    model.hf_quantizer = LorasmithQuantizer(config, pre_quantized=True)
    model.quantization_method = config.quant_method
    forget_takeover_(model)
