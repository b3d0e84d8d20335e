"""The progress display on the terminal: a bar, or plain lines where the output is no terminal."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lorasmith.training.loggers.logger import Logger, LoggerContext, loggers

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Steps, loss, tokens/s, memory and the time that is left, on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total = 0
        self._started = (0, 0.0)
        self._last_line = float("-inf")

    def start(self, step: int, total_steps: int) -> None:
        self._total, self._started = total_steps, (step, time.perf_counter())
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task("", total=total_steps, completed=step)
            self._progress.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" not in values:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            self._console.print(f"step {step}: {shown}", highlight=False, soft_wrap=True)
        elif self._progress is not None:
            self._progress.update(self._task, completed=step, description=_summary(values))
        elif step == self._total or time.perf_counter() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            line = f"step {step}/{self._total}  {_summary(values)}  {self._remaining(step)}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _remaining(self, step: int) -> str:
        first, began = self._started
        seconds = (time.perf_counter() - began) / max(1, step - first) * (self._total - step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


def _summary(values: Mapping[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}"]
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:.0f} tokens/s")
    if "memory_peak_bytes" in values:
        peak = f"peak {values['memory_peak_bytes'] / 2**30:.2f}"
        if "memory_reserved_peak_bytes" in values:
            peak += f", reserved {values['memory_reserved_peak_bytes'] / 2**30:.2f}"
        parts.append(f"{values['memory_bytes'] / 2**30:.2f} GiB ({peak})")
    return "  ".join(parts)


@loggers.register("progress")
def _build(context: LoggerContext) -> Logger:
    return ProgressDisplay()
