"""Tiny models of real architectures with seeded random weights."""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from lorasmith.quantized import Scheme, quantize_module

IDS = torch.tensor([[5, 17, 42, 3, 9, 60, 11], [8, 2, 33, 21, 50, 1, 7]])


def llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """Two layers, hidden 32, biases in the attention, vocabulary 64."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": True,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()


def bert(seed: int = 0) -> BertForSequenceClassification:
    """Two layers, hidden 32, three labels, vocabulary 64."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=3
    )
    return BertForSequenceClassification(config).eval()


def quantized(model: nn.Module, scheme: Scheme | None = None) -> nn.Module:
    """model with every linear layer except heads replaced by its quantized twin."""
    heads = ("lm_head", "classifier")
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path not in heads:
            model.set_submodule(path, quantize_module(module, scheme or Scheme(), path))
    return model


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@torch.no_grad()
def shake(model: nn.Module, size: float = 0.1) -> nn.Module:
    """Move every trainable tensor away from its start, so that adapters have an effect."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model
