"""How many questions a model answers: greedy generation, the whole answer compared."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.quickstart.task import Item

BATCH = 100
MAX_NEW_TOKENS = 4


@torch.no_grad()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """What model says after each prompt, up to the end of its answer; the likeliest token at every step.

    Texts are without special tokens and the space around them. The model is left in evaluation mode.
    """
    model.eval()
    # transformers states this only of models that can generate
    generate: Any = model.generate
    said: list[str] = []
    for start in range(0, len(prompts), BATCH):
        chosen = list(prompts[start : start + BATCH])
        tokens = tokenizer(chosen, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        output = generate(**tokens, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        replies = output[:, tokens.input_ids.shape[1] :]
        said += [text.strip() for text in tokenizer.batch_decode(replies, skip_special_tokens=True)]
    return said


def exact_match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> float:
    """Share of items whose answer the model gives word for word and then ends."""
    said = answers(model, tokenizer, [item.prompt for item in items])
    return sum(text == item.completion.strip() for text, item in zip(said, items)) / len(items)
