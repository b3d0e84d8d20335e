"""GPT-2's tokenizer cut to a smaller vocabulary, which gives text realistic lengths under a random checkpoint."""

import json
from pathlib import Path

from shared import SHARED
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BYTES = 256
END = "<|endoftext|>"


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Save to folder a tokenizer of vocabulary tokens: the bytes, GPT-2's first merges, and an end of text."""
    source = SHARED / "tokenizers" / "gpt2"
    numbers = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    # a merge's place is its token's number, so the first ones make a tokenizer of their own
    kept = {token: number for token, number in numbers.items() if number < vocabulary - 1}
    lines = (source / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split() for line in lines if not line.startswith("#version"))]
    tokenizer = Tokenizer(models.BPE(kept, merges[: vocabulary - 1 - BYTES]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
