"""Training: one loop, its step, losses, optimizers, checkpoints and loggers."""

from lorasmith.training.loggers import Logger, LoggerContext, loggers
from lorasmith.training.loop import BatchStream, TrainingResult, run
from lorasmith.training.loss import ClassificationLoss, Loss, SplitHeadLoss, WholeModelLoss, loss_for
from lorasmith.training.run_folder import RunFolder
from lorasmith.training.settings import TrainingSettings
from lorasmith.training.together import Job, train_together

__all__ = [
    "BatchStream",
    "ClassificationLoss",
    "Job",
    "Logger",
    "LoggerContext",
    "Loss",
    "RunFolder",
    "SplitHeadLoss",
    "TrainingResult",
    "TrainingSettings",
    "WholeModelLoss",
    "loggers",
    "loss_for",
    "run",
    "train_together",
]
