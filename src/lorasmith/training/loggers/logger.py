"""What a logger is, and the table of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lorasmith.registry import Registry
from lorasmith.training.run_folder import RunFolder


class Logger(Protocol):
    """Receives a run's numbers as they come."""

    def start(self, step: int, total_steps: int) -> None:
        """The run begins after step (0 unless resumed); numbers of later steps that were logged before are void."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """The run is over; also called where it failed."""


@dataclass(frozen=True)
class LoggerContext:
    """What a logger may want to know when it is made; recipe is written into services that show it."""

    folder: RunFolder
    recipe: Mapping[str, Any] = field(default_factory=dict)


loggers: Registry[Callable[[LoggerContext], Logger]] = Registry("logger", "lorasmith.training.loggers")
