"""How a folder says that its model or adapter generates."""

from pathlib import Path

from transformers import GenerationConfig

from lorasmith.errors import ModelError, reason
from lorasmith.models.checkpoint import read_json

GENERATION = "generation_config.json"


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """The settings in folder, None where it has none; ModelError, naming the file, for one that is damaged."""
    path = folder / GENERATION
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        return GenerationConfig.from_dict(values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} holds impossible settings: {reason(error)}") from error
