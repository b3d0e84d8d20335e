"""Tokenizers of real models."""

import pytest
from transformers import AutoTokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def gpt2(shared):
    """Adds no BOS of itself, has no padding token, eos is <|endoftext|>."""
    return AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")


@pytest.fixture
def tinystories(shared):
    """SentencePiece style: adds a BOS, and a blank before a beginning."""
    return AutoTokenizer.from_pretrained(shared / "models" / "tinystories-656k")


@pytest.fixture
def minilm(shared):
    """BERT's: [CLS] before and [SEP] behind a text."""
    return AutoTokenizer.from_pretrained(shared / "models" / "minilm-l6-v2")


@pytest.fixture
def chatml(gpt2):
    """GPT-2's vocabulary with ChatML's special tokens and template, as chat models of that family have them."""
    gpt2.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"})
    gpt2.chat_template = CHATML
    return gpt2
