"""Cross-entropy of rows of logits on a CPU through csrc/, in f32 and bf16; other types go to the reference."""

from typing import Any

import torch
from torch import Tensor

from lorasmith.ops.library import implement_native
from lorasmith.ops.native import FLOATS, extension, kernels, level
from lorasmith.ops.token_loss import reference
from lorasmith.ops.token_loss.schema import Asked


def token_loss_(logits: Tensor, labels: Tensor, weights: Tensor | None, *given: Any) -> Tensor:
    """Losses f32 [N] and, over logits [N, V], their gradient; see schema.py."""
    if logits.dtype not in FLOATS or not logits.is_contiguous() or logits.numel() == 0:
        return reference.token_loss_(logits, labels, weights, *given)
    softcap, scale, *asked = Asked(*given)
    losses_N = torch.empty(labels.shape, dtype=torch.float32)
    factors_N = None if weights is None else weights.float().contiguous()
    threads = torch.get_num_threads()
    kernels().token_loss(
        logits, labels.contiguous(), factors_N, losses_N, scale, softcap or 0.0, *asked, threads, level()
    )
    return losses_N


if extension() is not None:
    implement_native("token_loss_", "cpu", token_loss_)
