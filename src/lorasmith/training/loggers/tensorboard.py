"""TensorBoard event files in the run folder."""

from collections.abc import Mapping

from lorasmith.errors import RecipeError
from lorasmith.training.loggers.logger import Logger, LoggerContext, loggers

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    SummaryWriter = None  # type: ignore[misc,assignment]


class TensorBoard:
    """One scalar a number, by its name."""

    def __init__(self, context: LoggerContext) -> None:
        if SummaryWriter is None:
            raise RecipeError(
                "logger 'tensorboard' needs the package tensorboard; pip install 'lorasmith[tensorboard]'"
            )
        self._folder = context.folder.tensorboard
        self._writer: SummaryWriter | None = None

    def start(self, step: int, total_steps: int) -> None:
        """Open the event file; TensorBoard hides what an earlier process logged after step."""
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        assert self._writer is not None, "start comes before log"
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@loggers.register("tensorboard")
def _build(context: LoggerContext) -> Logger:
    return TensorBoard(context)
