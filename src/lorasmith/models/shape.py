"""The sizes of a transformers model that virtual tokens and prefixes are made to."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from lorasmith.errors import ModelError


@dataclass(frozen=True)
class ModelShape:
    """Widths and counts; key_heads and key_width are those of one layer's keys.

    grouped says that the model states heads of its keys apart from those of its queries. An encoder-decoder states its
    encoder's layers and heads, as transformers' config does.
    """

    width: int
    layers: int
    heads: int
    key_heads: int
    key_width: int
    grouped: bool


def model_shape(model: nn.Module) -> ModelShape:
    """The shape that model's config states. Raises ModelError for what is no transformers model."""
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{type(model).__name__} is no transformers model, whose config states heads and layers")
    config = model.config.get_text_config()
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    key_heads = getattr(config, "num_key_value_heads", None)
    # T5 calls it d_kv
    key_width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or width // heads
    layers = int(config.num_hidden_layers)
    return ModelShape(width, layers, heads, int(key_heads or heads), int(key_width), grouped=key_heads is not None)
