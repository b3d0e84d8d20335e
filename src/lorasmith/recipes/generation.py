"""Continuing tokens with a model as it stands, streamed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from lorasmith.errors import InputError, ModelError
from lorasmith.models.narrow_linear import narrow_linears
from lorasmith.models.quiet import quiet_transformers
from lorasmith.recipes.positions import context_of


@dataclass(frozen=True)
class GenerationSettings:
    """How text is continued: its length in tokens, and sampling (temperature 0 takes the likeliest token).

    Raises InputError for values out of range, and for a top_p that nothing would be sampled with.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    raw: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise InputError(f"temperature={self.temperature}, top_p={self.top_p}: use 0 or more, and 0 < top_p <= 1")
        if self.temperature == 0 and self.top_p < 1:
            raise InputError(f"top_p={self.top_p} samples nothing at temperature=0; give a temperature such as 1 too")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed={self.seed} must be at least 0 and below 2^63")

    def arguments(self, room: int | None = None) -> dict[str, Any]:
        """The arguments of transformers' generate for an answer of room tokens at most; None: without that limit."""
        longest = self.max_new_tokens if room is None else min(self.max_new_tokens, room)
        if self.temperature == 0:
            return {"max_new_tokens": longest, "do_sample": False, "temperature": None, "top_p": None}
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"max_new_tokens": longest, **sampling}


class _Pieces(TextStreamer):
    """Hands finished pieces of text to a function instead of printing them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hand_over: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.hand_over = hand_over

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.hand_over(text)


@torch.no_grad()
def continue_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    settings: GenerationSettings,
    on_text: Callable[[str], None] = lambda piece: None,
) -> str:
    """What model says after input_ids [1, T], without special tokens; handed to on_text piece by piece.

    The answer ends where the model's positions end. The global random generators are left as they were.
    Raises ModelError for a model that generates nothing, InputError for tokens that leave no position to answer at.
    """
    if not isinstance(model, GenerationMixin):
        raise ModelError(f"{type(model).__name__} generates no text; load a causal language model")
    speaker: Any = model
    room = _room(model, input_ids.shape[1])
    ids = input_ids.to(model.device)
    # transformers warns that a length of the model's own settings is overruled, as is meant
    with torch.random.fork_rng(), quiet_transformers(), narrow_linears(model):
        torch.manual_seed(settings.seed)
        output = speaker.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=_padding(tokenizer),
            streamer=_Pieces(tokenizer, on_text),
            **settings.arguments(room),
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def _room(model: PreTrainedModel, taken: int) -> int | None:
    """Positions that are left behind so many tokens; None where the model states no limit."""
    context = context_of(model)
    if context is not None and taken >= context:
        raise InputError(
            f"the prompt has {taken} tokens, the model was made for {context} positions, the answer's included; "
            "shorten it, or begin a new chat"
        )
    return None if context is None else context - taken


def _padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((number for number in ids if number is not None), None)


def stop_after_answers_(model: PreTrainedModel, ends: Sequence[int]) -> None:
    """Lets generation stop at each of these tokens too, in place."""
    config = model.generation_config
    if config is None or not ends:
        return
    known = config.eos_token_id
    listed = [known] if isinstance(known, int) else list(known or [])
    config.eos_token_id = list(dict.fromkeys([*listed, *ends]))
