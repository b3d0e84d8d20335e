"""Generations that show what training changed: the same prompts before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.data import IGNORED, Example
from lorasmith.models.modes import kept_modes
from lorasmith.recipes.generate import encode_turns
from lorasmith.recipes.generation import GenerationSettings, continue_tokens
from lorasmith.recipes.sections import EvaluationSection

# of a text, whose every token is learned, so much is shown as the prompt
TEXT_PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Prompt:
    """Tokens [1, T] to continue, the text that they are, and what the data says comes next (None: unknown)."""

    input_ids: Tensor
    text: str
    expected: str | None


def choose_prompts(
    section: EvaluationSection, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """The section's own prompts, else as many from examples, evenly spaced."""
    if section.prompts is not None:
        listed = section.prompts[: section.samples]
        return [
            Prompt(encode_turns(tokenizer, [{"role": "user", "content": text}], raw=False), text, None)
            for text in listed
        ]
    count = min(section.samples, len(examples))
    places: list[int] = np.linspace(0, len(examples) - 1, count).round().astype(int).tolist() if count else []
    return [_prompt_of(examples[place], tokenizer, section.max_new_tokens) for place in places]


def generate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    section: EvaluationSection,
    context: int | None,
) -> list[str]:
    """What model, as it stands, says to each prompt; the likeliest token each time."""
    settings = GenerationSettings(max_new_tokens=section.max_new_tokens)
    room = None if context is None else max(1, context - section.max_new_tokens)
    with kept_modes(model):
        model.eval()
        return [
            continue_tokens(model, tokenizer, prompt.input_ids[:, -room:] if room else prompt.input_ids, settings)
            for prompt in prompts
        ]


def _prompt_of(example: Example, tokenizer: PreTrainedTokenizerBase, longest: int) -> Prompt:
    assert not isinstance(example.labels, int), "classifiers are not sampled from"
    labels = np.asarray(example.labels)
    first = int(np.argmax(labels != IGNORED))
    # everything is learned from the first or second token on: a text, not an answer to a prompt
    start = first if first > 1 else min(TEXT_PROMPT_TOKENS, max(1, len(example) // 2))
    ids, rest = list(example.input_ids[:start]), list(example.input_ids[start : start + longest])
    return Prompt(
        torch.tensor([ids]),
        str(tokenizer.decode(ids, skip_special_tokens=True)),
        str(tokenizer.decode(rest, skip_special_tokens=True)),
    )
