"""The folder of real models and texts, which lies beside the repository or where LORASMITH_SHARED says."""

import argparse
import os
from pathlib import Path

SHARED = Path(os.environ.get("LORASMITH_SHARED", Path(__file__).resolve().parents[2] / "shared" / "data"))


def absence() -> str | None:
    """Why real models and texts cannot be used, or None where they can."""
    if SHARED.is_dir():
        return None
    return f"{SHARED} does not exist; set LORASMITH_SHARED to the folder of models and texts"


def require_shared(parser: argparse.ArgumentParser) -> None:
    """End the program where the folder is absent."""
    if reason := absence():
        parser.exit(2, f"error: {reason}\n")
