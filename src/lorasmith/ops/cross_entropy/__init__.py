"""The output head and its cross-entropy as one step, without the logits of a whole batch."""

from lorasmith.ops.cross_entropy.schema import IGNORED, head_cross_entropy, linear_cross_entropy

__all__ = ["IGNORED", "head_cross_entropy", "linear_cross_entropy"]
