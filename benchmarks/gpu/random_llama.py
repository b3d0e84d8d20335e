"""Llama models of true shapes with random weights, made and quantized on their device layer by layer.

So the 16-bit model never exists, and 65 billion parameters need no more than their 4 bits and one matrix. Ours and the
peer's of one shape, seed and device hold the same values.
"""

from dataclasses import replace
from typing import Any

import torch
from make_checkpoint import DEVIATION, Shape
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import lorasmith
from lorasmith.models.placement import replace_linears_
from lorasmith.quantized import QuantizedLinear, Scheme

LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128256)
LLAMA_7B = Shape(32, 4096, 11008, 32, 32, 32000)
LLAMA_65B = Shape(80, 8192, 22016, 64, 64, 32000)
TINY = Shape(2, 64, 128, 4, 2, 256)


def config_of(shape: Shape) -> LlamaConfig:
    return LlamaConfig(**(shape.config() | {"max_position_embeddings": 1 << 20}))


def empty(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Shapes alone, on the meta device, quantized layers in place."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(shape)).to(dtype)
    replace_linears_(model, ["lm_head"], Scheme("nf4"), dtype)
    return model


def ours(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """In NF4 with double quantization; what stays dense in dtype."""
    return _filled(empty(shape, dtype), device, dtype, seed)


def dense(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """As ours, not quantized."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(shape)).to(dtype)
    return _filled(model, device, dtype, seed)


def bitsandbytes(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """transformers' model with bitsandbytes' layers, as BitsAndBytesConfig with double quantization makes it."""
    from bitsandbytes.nn import Linear4bit

    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(shape)).to(dtype)
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and name != "lm_head":
            sizes, how = (layer.in_features, layer.out_features), {"compute_dtype": dtype, "quant_type": "nf4"}
            model.set_submodule(name, Linear4bit(*sizes, bias=False, compress_statistics=True, device="meta", **how))
    model.is_loaded_in_4bit = model.is_quantized = True
    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return _filled(model, device, dtype, seed)


def _filled(model: Any, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    generator = torch.Generator(device).manual_seed(seed)

    def random(size: Any) -> torch.Tensor:
        return torch.empty(tuple(size), dtype=dtype, device=device).normal_(0, DEVIATION, generator=generator)

    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.quantize_(random(module.shape))
        elif type(module).__name__ == "Linear4bit":
            module.weight = _params4bit(random((module.out_features, module.in_features)), device)
        else:
            for name, value in list(module.named_parameters(recurse=False)):
                made = torch.ones_like(value, device=device) if value.dim() == 1 else random(value.shape)
                setattr(module, name, nn.Parameter(made, requires_grad=False))
    with device:
        # its buffers are computed, not stored
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model


def _params4bit(weight: torch.Tensor, device: torch.device) -> Any:
    from bitsandbytes.nn import Params4bit

    return Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4").to(device)


def adapted(base: Any, rank: int, *, wide: bool = True) -> Any:
    """LoRA of lorasmith on all linear layers; wide keeps it in f32, else it is in the base's type."""
    torch.manual_seed(0)
    return lorasmith.get_peft_model(base, lorasmith.LoraConfig(**lora(rank)), autocast_adapter_dtype=wide)


def lora(rank: int) -> dict[str, Any]:
    """Keywords of a LoraConfig, ours and PEFT's."""
    return {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def shallower(shape: Shape, layers: int) -> Shape:
    return replace(shape, layers=layers)
