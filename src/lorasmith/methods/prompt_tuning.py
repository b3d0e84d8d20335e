"""Prompt tuning: trainable virtual tokens before the input. Source: arXiv 2104.08691, section 2."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from lorasmith.errors import AttachError
from lorasmith.methods.config import PromptLearningConfig
from lorasmith.methods.method import InputMethod, Prompt
from lorasmith.methods.prompt_embedding import PromptEmbedding, rows_of
from lorasmith.methods.registry import methods


class PromptTuningInit(StrEnum):
    """How the virtual tokens start: at random, as sampled tokens of the vocabulary, or as those of a text."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """PEFT's fields and defaults; tokenizer_kwargs go to the tokenizer that reads the text.

    Raises AttachError without virtual tokens, for TEXT without a text and a tokenizer, and for tokenizer_kwargs
    without TEXT.
    """

    METHOD: ClassVar[str] = "PROMPT_TUNING"

    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        starts = [start.value for start in PromptTuningInit]
        if self.prompt_tuning_init not in starts:
            raise AttachError(f"prompt_tuning_init={self.prompt_tuning_init!r} is not one of {', '.join(starts)}")
        self.prompt_tuning_init = PromptTuningInit(self.prompt_tuning_init)
        if self.prompt_tuning_init == PromptTuningInit.TEXT:
            for name in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
                if not getattr(self, name):
                    raise AttachError(f"{name}={getattr(self, name)!r}: prompt_tuning_init='TEXT' needs it")
        elif self.tokenizer_kwargs:
            raise AttachError(f"tokenizer_kwargs={self.tokenizer_kwargs}: only prompt_tuning_init='TEXT' reads a text")


class PromptTuning(InputMethod[PromptTuningConfig]):
    """Trainable virtual tokens."""

    config_class = PromptTuningConfig

    def prompt(self, config: PromptTuningConfig, embedding: nn.Module) -> Prompt:
        prompt = PromptEmbedding(config, embedding)
        if config.prompt_tuning_init != PromptTuningInit.RANDOM and not config.inference_mode:
            ids = _start_ids(config, embedding).to(prompt.embedding.weight.device)
            prompt.load_embeddings(embedding(ids).detach())
        return prompt


def _start_ids(config: PromptTuningConfig, embedding: nn.Module) -> Tensor:
    # ids [rows]
    count = rows_of(config)
    if config.prompt_tuning_init == PromptTuningInit.SAMPLE_VOCAB:
        rows = embedding.num_embeddings
        assert isinstance(rows, int)
        return torch.randint(rows, (count,))
    # an adapter's config may come from anywhere: it must not make code run
    options = {name: value for name, value in (config.tokenizer_kwargs or {}).items() if name != "trust_remote_code"}
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **options)
    ids = tokenizer(config.prompt_tuning_init_text)["input_ids"]
    repeats = -(-count // len(ids))
    return torch.tensor((ids * repeats)[:count])


methods.add("prompt_tuning", PromptTuning())
