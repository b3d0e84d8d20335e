"""Prefix tuning: trainable keys and values before those of every attention layer. Source: arXiv 2101.00190, section 4.

The prefix is a row a virtual token that holds its keys and values of all layers, or what a two-layer MLP makes of a
narrower row (prefix_projection; section 4.3). A file holds the keys and values, and no MLP, as in PEFT.
Axes: V virtual tokens, L layers, H heads of the keys, W width of a head.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.errors import AttachError
from lorasmith.methods.config import PromptLearningConfig
from lorasmith.methods.method import InputMethod, Prefix, Prompt
from lorasmith.methods.prompt_embedding import check_shape
from lorasmith.methods.registry import methods
from lorasmith.models.shape import ModelShape


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """PEFT's fields and defaults: init_weights "zero" starts from keys and values of zero, None at random.

    token_dim and num_attention_heads are those of the keys, which grouped heads share. Raises AttachError for another
    start or a hidden size below 1.
    """

    METHOD: ClassVar[str] = "PREFIX_TUNING"

    init_weights: Literal["zero"] | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights not in (None, "zero"):
            raise AttachError(f"init_weights={self.init_weights!r} is not one of None, 'zero'")
        if self.encoder_hidden_size is not None and self.encoder_hidden_size < 1:
            raise AttachError(f"encoder_hidden_size={self.encoder_hidden_size} must be at least 1")


class KeysAndValues(Prefix):
    """Rows [V, 2 L H W], or rows [V, H W] and the MLP that widens them."""

    def __init__(self, config: PrefixTuningConfig, device: torch.device) -> None:
        super().__init__()
        assert config.token_dim and config.num_layers and config.num_attention_heads and config.encoder_hidden_size
        self.tokens, self.layers, self.heads = config.virtual_tokens, config.num_layers, config.num_attention_heads
        self.parts = config.num_transformer_submodules or 1
        self.width = config.token_dim
        # a file's keys and values are projected already
        projects = config.prefix_projection and not config.inference_mode
        self.transform: nn.Sequential | None = None
        if projects:
            hidden = config.encoder_hidden_size
            self.transform = nn.Sequential(
                nn.Linear(self.width, hidden), nn.Tanh(), nn.Linear(hidden, 2 * self.layers * self.width)
            )
        self.embedding = nn.Embedding(self.tokens, self.width if projects else 2 * self.layers * self.width)
        self.to(device)
        if config.init_weights == "zero":
            self._start_at_zero()

    def _start_at_zero(self) -> None:
        last = self.embedding if self.transform is None else self.transform[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def describe(self) -> str:
        made = "" if self.transform is None else " through an MLP"
        return f"keys and values of {self.tokens} virtual tokens{made}"

    def embeddings(self) -> Tensor:
        rows = self.embedding.weight
        return rows if self.transform is None else self.transform(rows)

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        # an encoder-decoder's layers take every second pair, and begin again in the middle: PEFT cuts twice the pairs
        # into fours, for self- and cross-attention, and drops the latter
        first = (2 * self.parts * layer) % (2 * self.layers)
        return self._piece(first), self._piece(first + 1)

    def _piece(self, index: int) -> Tensor:
        """Keys or values [H, V, W]: one of the 2 L pieces of the rows."""
        columns = slice(index * self.width, (index + 1) * self.width)
        rows = self.embedding.weight
        if self.transform is None:
            piece_VK = rows[:, columns]
        else:
            last = self.transform[-1]
            assert isinstance(last, nn.Linear)
            # only the outputs that are asked for: every layer asks on its own, also when it is recomputed
            piece_VK = functional.linear(self.transform[:-1](rows), last.weight[columns], last.bias[columns])
        return piece_VK.unflatten(1, (self.heads, -1)).transpose(0, 1)

    def load_embeddings(self, embeddings: Tensor) -> None:
        check_shape(embeddings, (self.tokens, 2 * self.layers * self.width))
        if self.transform is not None:
            # what was saved has been projected
            old = self.embedding.weight
            self.transform = None
            self.embedding = nn.Embedding(self.tokens, embeddings.shape[1], device=old.device, dtype=old.dtype)
            self.embedding.requires_grad_(old.requires_grad)
        with torch.no_grad():
            self.embedding.weight.copy_(embeddings)


class PrefixTuning(InputMethod[PrefixTuningConfig]):
    """Trainable keys and values."""

    config_class = PrefixTuningConfig
    packs = True

    def prepare(self, config: PrefixTuningConfig, shape: ModelShape) -> None:
        if shape.grouped or config.token_dim is None or config.num_attention_heads is None:
            config.token_dim = shape.key_heads * shape.key_width
            config.num_attention_heads = shape.key_heads
        config.encoder_hidden_size = config.encoder_hidden_size or config.token_dim
        super().prepare(config, shape)

    def prompt(self, config: PrefixTuningConfig, embedding: nn.Module) -> Prompt:
        return KeysAndValues(config, next(embedding.parameters()).device)

    def missing_in_files(self, config: PrefixTuningConfig) -> str | None:
        return "the projection that made its keys and values" if config.prefix_projection else None


methods.add("prefix_tuning", PrefixTuning())
