"""Scores on held-out examples, each with an interval, and what changed between two of them."""

from lorasmith.evaluation.compare import compare
from lorasmith.evaluation.estimate import Estimate
from lorasmith.evaluation.input_moments import input_moments
from lorasmith.evaluation.merge_fidelity import Fidelity, Kept, layer_error, layer_kept, merge_fidelity, scored_logits
from lorasmith.evaluation.metrics import metrics
from lorasmith.evaluation.outcomes import Classified, Predicted
from lorasmith.evaluation.run_causal import evaluate_causal
from lorasmith.evaluation.run_classifier import evaluate_classifier
from lorasmith.evaluation.scores import Scores

__all__ = [
    "Classified",
    "Estimate",
    "Fidelity",
    "Kept",
    "Predicted",
    "Scores",
    "compare",
    "evaluate_causal",
    "evaluate_classifier",
    "input_moments",
    "layer_error",
    "layer_kept",
    "merge_fidelity",
    "metrics",
    "scored_logits",
]
