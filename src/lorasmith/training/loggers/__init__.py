"""Where a run's numbers go besides metrics.jsonl; one file a logger."""

from lorasmith.training.loggers.logger import Logger, LoggerContext, loggers

__all__ = ["Logger", "LoggerContext", "loggers"]
