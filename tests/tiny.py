"""Tiny models of real architectures with seeded random weights."""

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

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


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Two layers of Conv1D, hidden 32, vocabulary 64, the head tied to the embedding."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).eval()


def t5(seed: int = 0, **changes: object) -> T5ForConditionalGeneration:
    """Three layers in the encoder and three in the decoder (with two, PEFT gives both the same prefix), hidden 32."""
    torch.manual_seed(seed)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=64, decoder_start_token_id=0, **(sizes | changes))).eval()


def vit(seed: int = 0) -> ViTForImageClassification:
    """Two layers, hidden 32, pictures of 8 x 8 in patches of 4 x 4, three labels."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)).eval()


_MIXTURE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}


def mixtral(seed: int = 0, **changes: object) -> MixtralForCausalLM:
    """Two layers of three experts of width 48, of which two answer; hidden 32, vocabulary 64."""
    torch.manual_seed(seed)
    return MixtralForCausalLM(MixtralConfig(**(_MIXTURE | {"num_local_experts": 3} | changes))).eval()


def qwen_moe(seed: int = 0) -> Qwen2MoeForCausalLM:
    """Two layers of four experts of width 24 beside a shared one of width 40."""
    torch.manual_seed(seed)
    sizes = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**_MIXTURE, **sizes)).eval()


def gpt_oss(seed: int = 0) -> GptOssForCausalLM:
    """Two layers of three experts with biases, held as [experts, in, out]."""
    torch.manual_seed(seed)
    model = GptOssForCausalLM(GptOssConfig(**_MIXTURE, num_local_experts=3, head_dim=8)).eval()
    # transformers leaves these as they were found in memory
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def quantized(model: nn.Module, scheme: Scheme | None = None) -> nn.Module:
    """model with every linear layer replaced by its quantized twin, except heads and what its class keeps in f32."""
    heads = ("lm_head", "classifier")
    kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | Conv1D) and path not in heads and path.rpartition(".")[2] not in kept:
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
