"""The page."""
from pathlib import Path


def render_report(run_folder: Path) -> Path:
    """Placeholder."""
    return run_folder / "report.html"
