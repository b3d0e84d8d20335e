"""Virtual tokens that are parameters themselves: what prompt tuning trains, and what files hold of its relatives."""

import torch
from torch import Tensor, nn

from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods.config import PromptLearningConfig
from lorasmith.methods.layer import layer_spec
from lorasmith.methods.method import Prompt


class PromptEmbedding(Prompt):
    """Virtual tokens that are rows of an embedding [rows, width].

    PEFT gives a sequence-to-sequence model two rows a token, of which only the encoder's first half is ever used.
    """

    def __init__(self, config: PromptLearningConfig, base: nn.Module) -> None:
        super().__init__()
        self.tokens = config.virtual_tokens
        device = next(base.parameters()).device
        # f32 whatever the base computes in: these are the trained values
        self.embedding = nn.Embedding(rows_of(config), width_of(config, base), device=device, dtype=torch.float32)

    def embeddings(self) -> Tensor:
        return self.embedding.weight

    @torch.no_grad()
    def load_embeddings(self, embeddings: Tensor) -> None:
        check_shape(embeddings, tuple(self.embedding.weight.shape))
        self.embedding.weight.copy_(embeddings)


def rows_of(config: PromptLearningConfig) -> int:
    """Rows of the embedding: the virtual tokens of every part of the model that PEFT counts."""
    return config.virtual_tokens * (config.num_transformer_submodules or 1)


def width_of(config: PromptLearningConfig, base: nn.Module) -> int:
    """The width of the model's input embedding base, which must be the config's.

    Raises AttachError for an embedding whose width is not known, or is another one.
    """
    spec = layer_spec(base)
    if spec is None:
        raise AttachError(f"the input embedding is a {type(base).__name__}; soft prompts need its width")
    if config.token_dim != spec.out_features:
        raise AttachError(
            f"token_dim={config.token_dim} is not the width {spec.out_features} of the input embedding; leave it out"
        )
    return spec.out_features


def check_shape(embeddings: Tensor, wanted: tuple[int, ...]) -> None:
    """Raise AdapterError unless embeddings, from a file, have the shape wanted."""
    if embeddings.shape != wanted:
        found = tuple(embeddings.shape)
        raise AdapterError(f"prompt_embeddings has shape {found}, the model needs {wanted} (rows, width)")
