"""The table of methods."""

from pathlib import Path
from typing import Any

from lorasmith.errors import AdapterError, InputError
from lorasmith.methods.config import CONFIG_FILE, AdapterConfig, read_config_fields
from lorasmith.methods.method import Method
from lorasmith.registry import Registry

methods: Registry[Method[Any]] = Registry("method", "lorasmith.methods")


def method_of(config: AdapterConfig) -> Method[Any]:
    """The method that config belongs to."""
    return methods[config.METHOD.lower()]


def config_from_fields(values: dict[str, Any]) -> AdapterConfig:
    """The config of the method that values["peft_type"] names.

    Raises AdapterError for a method that is not built, with the list of those that are.
    """
    name = str(values["peft_type"]).lower()
    if name not in methods:
        raise AdapterError(
            f"peft_type {values['peft_type']!r} is not supported; supported: {', '.join(methods.names())}"
        )
    return methods[name].config_class.from_dict(values)


def read_config(folder: str | Path) -> AdapterConfig:
    """The config in an adapter's folder. Raises AdapterError, naming the file, for one that cannot be read or meant."""
    fields = read_config_fields(folder)
    try:
        return config_from_fields(fields)
    except (InputError, TypeError) as error:
        raise AdapterError(f"{Path(folder) / CONFIG_FILE}: {error}") from error
