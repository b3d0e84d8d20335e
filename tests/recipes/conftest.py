"""Tiny models with tokenizers, made from a config, and data to train them on."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ANIMALS, THINGS = ("cat", "dog", "fox", "hen"), ("fish", "bone", "tree", "stone", "house", "cup")
SENTENCES = [f"the {animal} sees a {thing} ." for animal in ANIMALS for thing in THINGS]


def tokenizer():
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    words = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert"
    words = tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=words.pad_token_id,
    )
    BertForSequenceClassification(config).base_model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def stories(tmp_path):
    """Prompts with completions."""
    path = tmp_path / "stories.jsonl"
    records = [{"prompt": text[:12], "completion": text[12:]} for text in SENTENCES]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def reviews(tmp_path):
    """Texts whose first word is their class."""
    path = tmp_path / "reviews.jsonl"
    records = [
        {"text": f"{word} {text}", "label": label}
        for word, label in (("good", "yes"), ("bad", "no"))
        for text in SENTENCES
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
