"""The output head and its cross-entropy as one step, without the logits of a whole batch."""

from lorasmith.ops.cross_entropy.schema import (
    IGNORED,
    default_chunk,
    head_cross_entropy,
    head_token_losses,
    linear_cross_entropy,
    linear_token_losses,
)

__all__ = [
    "IGNORED",
    "default_chunk",
    "head_cross_entropy",
    "head_token_losses",
    "linear_cross_entropy",
    "linear_token_losses",
]
