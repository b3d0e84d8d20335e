"""Cross-entropy of rows of logits in plain PyTorch: the specification, on every device."""

from typing import Any

import torch
from torch import Tensor

from lorasmith.ops.library import implement_reference
from lorasmith.ops.token_loss.schema import Asked


def token_loss_(logits: Tensor, labels: Tensor, weights: Tensor | None, *given: Any) -> Tensor:
    """Losses [N] and, over logits [N, V], their gradient; see schema.py."""
    softcap, scale, label_smoothing, z_loss, gradient = Asked(*given)
    labels_N1 = labels[:, None]
    # .to keeps f32 logits as they are, and the shaping then works in place
    z_NV = logits.to(torch.promote_types(logits.dtype, torch.float32)).mul_(scale)
    if softcap is not None:
        z_NV.div_(softcap).tanh_().mul_(softcap)
    slope_NV = None if softcap is None or not gradient else 1 - (z_NV / softcap).square_()
    # everything is measured from the largest logit, so that large ones keep their differences
    most_N1 = z_NV.amax(1, keepdim=True)
    rest_N1 = z_NV.sub_(most_N1).logsumexp(1, keepdim=True)
    normaliser_N1 = most_N1 + rest_N1
    losses_N1 = rest_N1 - (1 - label_smoothing) * z_NV.gather(1, labels_N1)
    if label_smoothing:
        losses_N1 = losses_N1 - label_smoothing * z_NV.mean(1, keepdim=True)
    if z_loss:
        losses_N1 = losses_N1 + z_loss * normaliser_N1.square()
    factor_N1 = torch.ones_like(normaliser_N1) if weights is None else weights[:, None].to(z_NV.dtype)
    if gradient:
        gradient_NV = z_NV.sub_(rest_N1).exp_()
        if z_loss:
            gradient_NV.mul_(1 + 2 * z_loss * normaliser_N1)
        if label_smoothing:
            gradient_NV.sub_(label_smoothing / logits.shape[1])
        gradient_NV.scatter_add_(1, labels_N1, torch.full_like(normaliser_N1, label_smoothing - 1))
        if slope_NV is not None:
            gradient_NV.mul_(slope_NV)
        gradient_NV.mul_(factor_N1 * scale)
        if gradient_NV.dtype != logits.dtype:
            logits.copy_(gradient_NV)
    return (losses_N1 * factor_N1)[:, 0]


implement_reference("token_loss_", token_loss_)
