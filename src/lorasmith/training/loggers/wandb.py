"""Weights & Biases."""

from collections.abc import Mapping
from typing import Any

from lorasmith.errors import RecipeError
from lorasmith.training.loggers.logger import Logger, LoggerContext, loggers

try:
    import wandb
except ImportError:
    wandb = None


class WeightsAndBiases:
    """One run of the service for one run folder; project and entity come from its own environment variables."""

    def __init__(self, context: LoggerContext) -> None:
        if wandb is None:
            raise RecipeError("logger 'wandb' needs the package wandb; pip install 'lorasmith[wandb]'")
        self._context = context
        self._run: Any = None

    def start(self, step: int, total_steps: int) -> None:
        """Begin, or go on with, the service's run of this name."""
        path = self._context.folder.path
        self._run = wandb.init(
            name=path.name, id=path.name, resume="allow", dir=str(path), config=dict(self._context.recipe)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


@loggers.register("wandb")
def _build(context: LoggerContext) -> Logger:
    return WeightsAndBiases(context)
