"""Prompt tuning: trainable virtual tokens before the input. Source: arXiv 2104.08691, section 2."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods.config import AdapterConfig
from lorasmith.methods.method import InputMethod, Prompt
from lorasmith.methods.registry import methods


class PromptTuningInit(StrEnum):
    """How the virtual tokens start: at random, as sampled tokens of the vocabulary, or as those of a text."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass
class PromptTuningConfig(AdapterConfig):
    """PEFT's fields and defaults.

    Raises AttachError without virtual tokens, or for TEXT without a text and a tokenizer.
    """

    METHOD: ClassVar[str] = "PROMPT_TUNING"

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_virtual_tokens or self.num_virtual_tokens < 1:
            raise AttachError(
                f"num_virtual_tokens={self.num_virtual_tokens}: give the number of virtual tokens, say 20"
            )
        self.prompt_tuning_init = PromptTuningInit(self.prompt_tuning_init)
        if self.prompt_tuning_init == PromptTuningInit.TEXT:
            for name in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
                if not getattr(self, name):
                    raise AttachError(f"{name}={getattr(self, name)!r}: prompt_tuning_init='TEXT' needs it")

    @property
    def is_prompt_learning(self) -> bool:
        return True


class PromptEmbedding(Prompt):
    """Virtual tokens that are parameters themselves."""

    def __init__(self, tokens: int, width: int, device: torch.device) -> None:
        super().__init__()
        # f32 whatever the base computes in: these are the trained values
        self.embedding = nn.Embedding(tokens, width, device=device, dtype=torch.float32)

    def embeddings(self) -> Tensor:
        return self.embedding.weight

    @torch.no_grad()
    def load_embeddings(self, embeddings: Tensor) -> None:
        if embeddings.shape != self.embedding.weight.shape:
            wanted, found = tuple(self.embedding.weight.shape), tuple(embeddings.shape)
            raise AdapterError(f"prompt_embeddings has shape {found}, the model needs {wanted} (tokens, width)")
        self.embedding.weight.copy_(embeddings)


class PromptTuning(InputMethod[PromptTuningConfig]):
    """Trainable virtual tokens."""

    config_class = PromptTuningConfig

    def prompt(self, config: PromptTuningConfig, embedding: nn.Module, width: int) -> Prompt:
        assert config.num_virtual_tokens is not None
        device = next(embedding.parameters()).device
        prompt = PromptEmbedding(config.num_virtual_tokens, width, device)
        if config.prompt_tuning_init != PromptTuningInit.RANDOM and not config.inference_mode:
            prompt.load_embeddings(embedding(_start_ids(config, embedding).to(device)).detach())
        return prompt


def _start_ids(config: PromptTuningConfig, embedding: nn.Module) -> Tensor:
    # ids [tokens]
    count = config.num_virtual_tokens
    assert count is not None
    if config.prompt_tuning_init == PromptTuningInit.SAMPLE_VOCAB:
        rows = embedding.num_embeddings
        assert isinstance(rows, int)
        return torch.randint(rows, (count,))
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **(config.tokenizer_kwargs or {}))
    ids = tokenizer(config.prompt_tuning_init_text)["input_ids"]
    repeats = -(-count // len(ids))
    return torch.tensor((ids * repeats)[:count])


methods.add("prompt_tuning", PromptTuning())
