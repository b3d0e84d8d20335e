"""One file a metric, found by name."""

from lorasmith.evaluation.metrics.metric import Metric
from lorasmith.evaluation.metrics.registry import metrics

__all__ = ["Metric", "metrics"]
