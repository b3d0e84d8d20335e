"""A checkpoint with LoRA on all linear layers, made by each library: what whole-step benchmarks set side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

RANK, ALPHA, RATE = 8, 16, 2e-4
BETAS, EPS, DECAY, CLIP = (0.9, 0.999), 1e-8, 0.0, 1.0
CONFIG = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def ours(
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    quantized: bool = True,
    checkpointing: bool = False,
    return_freed: bool = False,
    adapter: Path | None = None,
) -> nn.Module:
    """Ours, ready to train on packed rows.

    dtype is that of what stays dense, None the checkpoint's; the LoRA is read from adapter where that is given.
    """
    import lorasmith
    from lorasmith.models.activation_checkpointing import checkpoint_activations_
    from lorasmith.models.fused_block import fuse_blocks_
    from lorasmith.models.packed_attention import enable_packing
    from lorasmith.ops.allocation import keep_freed_blocks, return_freed_blocks

    scheme = lorasmith.Scheme("nf4") if quantized else None
    base = lorasmith.load(folder, scheme=scheme, dtype=dtype or "auto", device="cpu").model
    if adapter is None:
        model = lorasmith.get_peft_model(base, lorasmith.LoraConfig(**CONFIG))
    else:
        model = lorasmith.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    # what the training loop and the recipes do
    (return_freed_blocks if return_freed else keep_freed_blocks)()
    fuse_blocks_(base)
    refused = enable_packing(base)
    assert refused is None, refused
    if checkpointing:
        checkpoint_activations_(base)
    return model.train()


def our_step(model: nn.Module, dtype: torch.dtype | None = torch.bfloat16) -> Callable[..., Any]:
    """The training step of lorasmith's own loop, called with the number of the step, its batches and learning rate.

    dtype is that of activations, None the weights' own.
    """
    from lorasmith.training import TrainingSettings, loss_for
    from lorasmith.training.checkpoint import trainable_parameters
    from lorasmith.training.optimizers import build
    from lorasmith.training.step import TrainingStep

    parameters = trainable_parameters(model)
    settings = TrainingSettings(max_steps=1, betas=BETAS, eps=EPS, weight_decay=DECAY, clip=CLIP)
    return TrainingStep(parameters, build(parameters, settings), loss_for(model, "causal"), settings.clip, dtype)


def peers_base(folder: Path, dtype: torch.dtype, *, quantized: bool) -> Any:
    """transformers' model; quantized means bitsandbytes' NF4 with double quantization."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how: dict[str, Any] = {"dtype": dtype}
    if quantized:
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(folder, **how)


def pefts(
    folder: Path,
    dtype: torch.dtype,
    *,
    quantized: bool = True,
    checkpointing: bool = False,
    adapter: Path | None = None,
) -> nn.Module:
    """PEFT's, as its documentation sets it up for training; see peers_base."""
    import peft

    base = peers_base(folder, dtype, quantized=quantized)
    if quantized:
        base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
    elif checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    if adapter is None:
        model = peft.get_peft_model(base, peft.LoraConfig(**CONFIG))
    else:
        model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    return model.train()


def write_adapter(folder: Path, into: Path, seed: int) -> None:
    """A LoRA on the checkpoint in folder as PEFT starts it, A random and B zero, so that both can start from it."""
    import peft

    base = peers_base(folder, torch.float32, quantized=False)
    torch.manual_seed(seed)
    peft.get_peft_model(base, peft.LoraConfig(**CONFIG)).save_pretrained(into)


def peft_step(model: nn.Module, dtype: torch.dtype, rate: float = RATE) -> Callable[[torch.Tensor], float]:
    """A plain PyTorch step on rows of tokens [B, T], all supervised; returns the loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device.type
    # on a GPU its fastest form
    fused = True if device == "cuda" else None
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=fused)

    def step(tokens_BT: torch.Tensor) -> float:
        with torch.autocast(device, dtype, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def packed(tokens_BT: torch.Tensor) -> Any:
    """Rows of tokens as one packed batch of ours, all supervised."""
    from lorasmith.data.batch import Batch

    rows, length = tokens_BT.shape
    labels_BT = tokens_BT.clone()
    labels_BT[:, 0] = -100
    positions = torch.arange(length).repeat(rows)[None]
    ends = torch.arange(rows + 1, dtype=torch.int32) * length
    return Batch(tokens_BT.view(1, -1), labels_BT.view(1, -1), None, positions, ends, rows * (length - 1))
