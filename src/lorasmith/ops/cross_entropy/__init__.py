"""The output head and its cross-entropy as one step, without the logits of a whole batch."""

from lorasmith.ops.cross_entropy.reference import Objective
from lorasmith.ops.cross_entropy.schema import IGNORED, PLAIN, head_cross_entropy, linear_cross_entropy

__all__ = ["IGNORED", "PLAIN", "Objective", "head_cross_entropy", "linear_cross_entropy"]
