"""Where an adapter lies: a folder, or a hub repository that is fetched."""

from pathlib import Path
from typing import Any

from lorasmith.models.hub import Source, fetch


def adapter_folder(
    model_id: str | Path,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    **unused: Any,
) -> Path:
    """The folder of an adapter that is named by a path or a hub repository."""
    folder = fetch(Source(model_id, revision=revision, token=token, offline=local_files_only))
    return folder / subfolder if subfolder else folder
