"""Answers on the command line: prompts, turns, one adapter or another."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.attach import adapters_of
from lorasmith.data.sources.source import read_text
from lorasmith.errors import DataError, InputError
from lorasmith.recipes.generation import GenerationSettings, continue_tokens
from lorasmith.recipes.subject import find_subject, load_subject, with_quantization

Turns = list[dict[str, str]]


class Speaker:
    """A model that answers, with any of its adapters or none."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def voices(self, base_too: bool) -> list[str | None]:
        """Names of the adapters to answer with; None is the bare model."""
        names: list[str | None] = list(adapters_of(self.model).configs)
        return [None, *names] if base_too or not names else names

    def answer(
        self, turns: Turns, voice: str | None, settings: GenerationSettings, on_text: Callable[[str], None]
    ) -> str:
        """The answer to the last turn, handed to on_text piece by piece and returned whole."""
        book = adapters_of(self.model)
        if voice is not None:
            book.activate([voice], trainable=False)
        prompt = encode_turns(self.tokenizer, turns, settings.raw)
        with book.disabled() if voice is None else nullcontext():
            return continue_tokens(self.model, self.tokenizer, prompt, settings, on_text)


def encode_turns(tokenizer: PreTrainedTokenizerBase, turns: Turns, raw: bool) -> Tensor:
    """Token ids [1, T]: through the chat template, or the last turn's text as it is where there is none, or raw."""
    if raw or not tokenizer.chat_template:
        encoded = tokenizer(turns[-1]["content"], return_tensors="pt")
    else:
        encoded = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    ids: Tensor = encoded["input_ids"]
    if ids.shape[1] == 0:
        raise DataError("the prompt has no tokens; write some text")
    return ids


def load_speaker(
    path: str,
    adapters: tuple[str, ...],
    *,
    quantization: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Speaker:
    """The model at path (run, adapter or base) with its and further adapters, ready to answer."""
    subject = with_quantization(find_subject(path, adapters, trust_remote_code=trust_remote_code), quantization)
    if subject.storage.task != "causal":
        raise InputError(f"{path} is a classifier, which generates no text; use lorasmith evaluate")
    loaded = load_subject(subject, device)
    return Speaker(loaded.model, loaded.tokenizer)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: a line each, or the field `prompt` of each line of a .jsonl file.

    Raises DataError, naming file and line.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; name a file with a prompt a line") from error
    # at line feeds alone: JSON strings may hold the Unicode line separators
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DataError(f"{path} holds no prompts; write one a line")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt(line, f"{path} line {number}") for number, line in numbered]


def _prompt(line: str, place: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: no JSON ({error}); mend the line") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise DataError(f"{place}: has no text in 'prompt'; add it or remove the line")
    return str(record["prompt"])
