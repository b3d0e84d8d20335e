"""Where the adapter of a run lies."""

from pathlib import Path

from lorasmith.methods import CONFIG_FILE
from lorasmith.training import RunFolder


def home_of(run: RunFolder, name: str) -> Path:
    """Where PEFT's layout puts the adapter of this name: adapter/ for "default", else a folder of its name inside."""
    return run.adapter if name == "default" else run.adapter / name


def adapter_home(run: RunFolder) -> Path:
    """The folder of the run's adapter; adapter/ where there is none yet."""
    inside = sorted(path.parent for path in run.adapter.glob(f"*/{CONFIG_FILE}"))
    return run.adapter if (run.adapter / CONFIG_FILE).is_file() or not inside else inside[0]
