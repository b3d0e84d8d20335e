"""Weights & Biases."""

from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from lorasmith.atomic import write_text
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
        """Begin, or go on with, the service's run of this folder."""
        path = self._context.folder.path
        self._run = wandb.init(
            name=path.name, id=self._id(), resume="allow", dir=str(path), config=dict(self._context.recipe)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _id(self) -> str:
        """What the service knows the run by. Not the folder's name: another folder of that name is another run."""
        kept = self._context.folder.wandb
        if not kept.exists():
            write_text(kept, token_hex(8))
        return kept.read_text(encoding="utf-8")


@loggers.register("wandb")
def _build(context: LoggerContext) -> Logger:
    return WeightsAndBiases(context)
