"""The name of the base in an adapter's config."""

from torch import nn

from lorasmith.methods import AdapterConfig


def with_base_name(config: AdapterConfig, model: nn.Module) -> AdapterConfig:
    """config, naming its base: PEFT writes the name into the config that it was given."""
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    return config
