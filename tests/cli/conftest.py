"""A model folder small enough to be made for the tests, and the command run in this process."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorasmith.cli.main import main

SENTENCES = [
    f"the {animal} {verb} a {thing} ."
    for animal in ("cat", "dog", "fox")
    for verb in ("sees", "eats", "likes")
    for thing in ("fish", "bone", "hen", "tree", "stone", "house")
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A random Llama of two layers with a byte-level tokenizer; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data_file(tmp_path) -> Path:
    """Prompts with completions as JSONL."""
    records = [
        {"prompt": " ".join(words[:3]) + " ", "completion": " ".join(words[3:])} for words in map(str.split, SENTENCES)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def lorasmith(capfd):
    """Runs `lorasmith ARGUMENTS` in this process and catches its exit code and both its streams."""

    def call(*arguments) -> Answer:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        caught = capfd.readouterr()
        return Answer(code, caught.out, caught.err)

    return call
