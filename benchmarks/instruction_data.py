"""Real instructions as examples, a few that stand for all of them, and how much padding they need in rows."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from shared import SHARED
from transformers import AutoConfig, AutoTokenizer
from transformers.trainer_pt_utils import LengthGroupedSampler

from lorasmith.data import EncodeSettings, Example, encode, read

RECORDS = "alpaca_style/alpaca_en_demo.json"
LONGEST = 1024


def instructions(folder: Path) -> list[Example]:
    """The records, by the tokenizer of the checkpoint in folder; longer ones are cut to its context."""
    longest = min(LONGEST, AutoConfig.from_pretrained(folder).max_position_embeddings)
    settings = EncodeSettings(max_length=longest, loss_on="completions")
    return encode(read(str(SHARED / RECORDS)), AutoTokenizer.from_pretrained(folder), settings)


def spread(lengths: Sequence[int], count: int) -> list[int]:
    """Numbers of count examples whose lengths are distributed as all lengths are."""
    ascending = sorted(range(len(lengths)), key=lambda number: lengths[number])
    return [ascending[(2 * place + 1) * len(lengths) // (2 * count)] for place in range(count)]


def shuffled(numbers: Sequence[int], seed: int) -> list[int]:
    """The numbers in an order that seed decides."""
    return random.Random(seed).sample(numbers, len(numbers))


def epoch_padding_shares(lengths: list[int], batch: int) -> dict[str, float]:
    """The share of padding in an epoch of all, by Trainer's sampler for steps of batch and by rows of a micro-batch."""
    torch.manual_seed(0)
    orders = {
        "random": torch.randperm(len(lengths)).tolist(),
        "by length": LengthGroupedSampler(batch, lengths=lengths),
    }
    return {f"{name}, {rows}": _padding(lengths, order, rows) for name, order in orders.items() for rows in (8, 4)}


def _padding(lengths: Sequence[int], order: Iterable[int], rows: int) -> float:
    drawn = [lengths[number] for number in order]
    batches = [drawn[start : start + rows] for start in range(0, len(drawn), rows)]
    return 1 - sum(drawn) / sum(len(batch) * max(batch) for batch in batches)
