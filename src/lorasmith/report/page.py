"""The page that a run leaves behind: one file, no script, nothing fetched."""

from importlib.resources import files
from pathlib import Path

from lorasmith.atomic import write_text
from lorasmith.errors import InputError
from lorasmith.report.comparison import comparison
from lorasmith.report.curves import curves
from lorasmith.report.memory import memory
from lorasmith.report.overview import heading, parameters, tiles
from lorasmith.report.run_data import RunData, mapping, read_run
from lorasmith.report.samples import samples
from lorasmith.report.words import text


def render_report(run_folder: str | Path) -> Path:
    """Write report.html into run_folder from the files that lie there, and return its path.

    What is missing is left out, and the page says so. Raises InputError where run_folder is no folder.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a run folder; name the folder that `lorasmith train` wrote")
    path = folder / "report.html"
    write_text(path, page(read_run(folder)))
    return path


def page(run: RunData) -> str:
    """The whole page as HTML."""
    sections = [
        ("Before and after", comparison(run)),
        ("Training", curves(run)),
        ("Memory", memory(run)),
        ("Parameters", parameters(run)),
        ("Samples", samples(run)),
        ("Recipe", _recipe(run)),
        ("Versions", _versions(run)),
    ]
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections if content)
    style = files("lorasmith.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(run.name)} · lorasmith</title><style>{style}</style></head>"
        f"<body><main>{heading(run)}{tiles(run)}{_damaged(run)}{body}</main></body></html>\n"
    )


def _damaged(run: RunData) -> str:
    if not run.damaged:
        return ""
    return f"<p class='absent'>Could not be read and is left out: {text(', '.join(run.damaged))}.</p>"


def _recipe(run: RunData) -> str:
    if not run.recipe_text:
        return "<p class='absent'>recipe.yaml is missing.</p>"
    return f"<details><summary>recipe.yaml, defaults included</summary><pre>{text(run.recipe_text)}</pre></details>"


def _versions(run: RunData) -> str:
    rows = "".join(
        f"<tr><td>{text(name)}</td><td>{text(version)}</td></tr>"
        for name, version in mapping(run.summary.get("versions")).items()
    )
    return f'<table class="parts">{rows}</table>' if rows else ""
