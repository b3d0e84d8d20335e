"""What a classifier's classes are called: in the model's config for the adapter that acts, and in a file beside it."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig

from lorasmith.atomic import write_text
from lorasmith.errors import AdapterError

# a file of ours: PEFT drops unknown fields of adapter_config.json with a warning, and leaves unknown files alone
CLASS_NAMES_FILE = "class_names.json"
# no adapter may have an empty name
_BASE = ""


def class_names(model: nn.Module) -> tuple[str, ...]:
    """The names in model's config, in the order of the classes' numbers; empty where it has none."""
    config = getattr(model, "config", None)
    names = (config.id2label if isinstance(config, PreTrainedConfig) else None) or {}
    # a key is text where a script set it so
    return tuple(name for _, name in sorted((int(number), str(name)) for number, name in names.items()))


def name_classes_(model: nn.Module, names: Sequence[str]) -> None:
    """Put names into model's config, and with them their number."""
    config = getattr(model, "config", None)
    if isinstance(config, PreTrainedConfig):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}


def write_class_names(folder: Path, names: Sequence[str]) -> None:
    """Write names into an adapter's folder."""
    write_text(folder / CLASS_NAMES_FILE, json.dumps(list(names), ensure_ascii=False) + "\n")


def read_class_names(folder: str | Path) -> tuple[str, ...]:
    """The names in an adapter's folder; empty where it has none, as those that PEFT wrote.

    Raises AdapterError for a file that is no list of names.
    """
    path = Path(folder) / CLASS_NAMES_FILE
    if not path.is_file():
        return ()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} is no valid JSON ({error}); save the adapter again, or delete the file") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise AdapterError(f"{path} is no list of names; save the adapter again, or delete the file")
    return tuple(names)


class ClassNames:
    """The names of each adapter; the model's config holds those of the adapter that acts, or the base's own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # the names of those that act are in the config alone
        self.idle: dict[str, tuple[str, ...]] = {}

    def move(self, before: Sequence[str], after: Sequence[str]) -> None:
        """Other adapters act than before: keep the names in the config for them, and put the others' there.

        An adapter that is new keeps what is there.
        """
        current = class_names(self.model)
        self.idle |= dict.fromkeys(before or [_BASE], current)
        wanted = next((self.idle[adapter] for adapter in after or [_BASE] if adapter in self.idle), current)
        if wanted != current:
            name_classes_(self.model, wanted)

    def of(self, adapter: str, acting: Sequence[str]) -> tuple[str, ...]:
        """The names of one adapter."""
        return class_names(self.model) if adapter in acting else self.idle.get(adapter, ())

    def forget(self, adapter: str) -> None:
        """Drop the names of an adapter that does not act."""
        self.idle.pop(adapter, None)
