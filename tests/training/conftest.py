"""A model and batches small enough to train in milliseconds."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorasmith.data.batch import Batch, concatenate, pad
from lorasmith.data.example import Example


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def make_examples(count: int = 6) -> list[Example]:
    """Examples of different lengths, and with different numbers of supervised tokens."""
    generator = torch.Generator().manual_seed(2)
    examples = []
    for index in range(count):
        tokens = torch.randint(1, 40, (6 + 2 * index,), generator=generator).tolist()
        masked = 1 + index % 4
        examples.append(Example(tokens, [-100] * masked + tokens[masked:]))
    return examples


class Repeating:
    """The smallest stream that the loop accepts: the same batches again and again."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.index = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.index += 1
            yield self.batches[(self.index - 1) % len(self.batches)]

    def epoch_batches(self) -> int:
        return len(self.batches)

    def state_dict(self) -> dict[str, int]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.index = state["index"]


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()


@pytest.fixture
def new_model():
    """Makes the same model again and again."""
    return make_model


@pytest.fixture
def examples() -> list[Example]:
    return make_examples()


@pytest.fixture
def padded(examples) -> Batch:
    return pad(examples, 0)


@pytest.fixture
def packed(examples) -> Batch:
    return concatenate(examples)


@pytest.fixture
def repeating() -> type[Repeating]:
    return Repeating
