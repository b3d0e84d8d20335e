"""The table of metrics."""

from lorasmith.evaluation.metrics.metric import Metric
from lorasmith.registry import Registry

metrics: Registry[Metric] = Registry("metric", "lorasmith.evaluation.metrics")
