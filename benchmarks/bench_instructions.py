"""Fine-tuning on real instructions: ours beside PEFT + bitsandbytes in transformers' Trainer, 16 examples a step.

    python benchmarks/bench_instructions.py [--model novels-8m|134m] [--steps 3] [--rounds 3] [--only TEXT]

999 instructions in Alpaca's form (from the shared folder, LORASMITH_SHARED; skipped without it), of which the answers
are learned, at their own lengths; all contestants get the same tokens and labels. A turn is a whole training run of
--steps optimizer steps on 16 examples each, in an order of its own. Its examples are spread over the set by length, so
that they have the set's lengths. NF4 with double quantization, rank 8 on all linear layers. "8 x 2" is 2 micro-batches
of 8 a step.

Ours runs lorasmith.training on micro-batches that lie in one row, each example a segment of its own, without padding
(packs of a fixed length would hold other numbers of examples than 16 a step). Trainer pads a micro-batch to its longest
example. "by length" sorts the turn's examples first; epoch_padding_share is what Trainer's own samplers reach over the
whole set. bf16 is as documented, with activation checkpointing; where a processor has no bf16 instructions its turn
takes minutes, and --most-seconds ends it. Writes results/instructions_MODEL.json.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapted_models
import torch
from contest import KEEP_FREED, Contest, Contestant, Turn, command_line, work
from cut_tokenizer import write_tokenizer
from instruction_data import epoch_padding_shares, instructions, shuffled, spread
from make_checkpoint import SHAPES, make_checkpoint
from quiet import machine
from results import peers, save, table
from shared import SHARED, absence
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from lorasmith.data import IGNORED, Example, Loader

BATCH = 16
RANDOM, REAL = "134m", "novels-8m"


def ours(rows: int) -> Callable[[Path], Turn]:
    """Micro-batches of rows examples, in lorasmith's training loop."""

    def load(folder: Path) -> Turn:
        from lorasmith.training import RunFolder, TrainingSettings, run

        model, examples = adapted_models.ours(folder), instructions(folder)

        def turn(numbers: list[int]) -> dict[str, Any]:
            chosen = [examples[number] for number in numbers]
            tokens = sum(map(len, chosen))
            layout: dict[str, Any] = {"packing": False, "padding_free": True, "shuffle": False, "pad_token_id": None}
            loader = Loader(chosen, rows, seed=0, max_length=tokens, **layout)
            settings = TrainingSettings(
                max_steps=len(numbers) // BATCH,
                batch_size=rows,
                accumulation=BATCH // rows,
                learning_rate=adapted_models.RATE,
                warmup=0,
                save_every=None,
            )
            with tempfile.TemporaryDirectory() as place:
                run_folder = RunFolder(Path(place) / "run")
                run(model, loader, settings, run_folder)
                steps = [json.loads(line) for line in run_folder.metrics.read_text().splitlines()]
            supervised = sum(step["supervised_tokens"] for step in steps)
            loss = sum(step["loss"] for step in steps) / len(steps)
            return {"examples": len(chosen), "supervised": supervised, "tokens": tokens, "cells": tokens, "loss": loss}

        return turn

    return load


class Counting:
    """DataCollatorForSeq2Seq that counts what passes: examples, targets, tokens, and cells with those of padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
        self.restart()

    def restart(self) -> None:
        self.counts = dict.fromkeys(("examples", "supervised", "tokens", "cells"), 0)

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        batch = self.collate(features)
        self.counts["examples"] += len(features)
        self.counts["supervised"] += int((batch["labels"][:, 1:] != IGNORED).sum())
        self.counts["tokens"] += int(batch["attention_mask"].sum())
        self.counts["cells"] += batch["input_ids"].numel()
        return batch


def trainers(
    rows: int, dtype: torch.dtype = torch.float32, *, by_length: bool = False, checkpointing: bool = False
) -> Callable[[Path], Turn]:
    """Micro-batches of rows examples, by PEFT and bitsandbytes in transformers' Trainer."""

    def load(folder: Path) -> Turn:
        from transformers import Trainer, TrainingArguments

        model = adapted_models.pefts(folder, dtype, checkpointing=checkpointing)
        collate = Counting(AutoTokenizer.from_pretrained(folder))
        examples = instructions(folder)

        def turn(numbers: list[int]) -> dict[str, Any]:
            order = sorted(numbers, key=lambda number: len(examples[number])) if by_length else numbers
            collate.restart()
            with tempfile.TemporaryDirectory() as place:
                arguments = TrainingArguments(
                    place,
                    per_device_train_batch_size=rows,
                    gradient_accumulation_steps=BATCH // rows,
                    num_train_epochs=1,
                    learning_rate=adapted_models.RATE,
                    bf16=dtype == torch.bfloat16,
                    train_sampling_strategy="sequential",
                    use_cpu=True,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                )
                data: Any = [features(examples[number]) for number in order]
                result = Trainer(model, arguments, data_collator=collate, train_dataset=data).train()
            assert result.global_step == len(numbers) // BATCH, result
            return {**collate.counts, "loss": result.training_loss}

        return turn

    return load


def features(example: Example) -> dict[str, list[int]]:
    """What a tokenizer gives, and labels."""
    assert not isinstance(example.labels, int)
    ids = list(example.input_ids)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(example.labels)}


CONTESTANTS = {
    "ours, 8 x 2": Contestant(ours(8)),
    "ours, 16 x 1": Contestant(ours(16)),
    "Trainer, f32, 8 x 2": Contestant(trainers(8)),
    "Trainer, f32, 8 x 2, freed blocks kept": Contestant(trainers(8), KEEP_FREED),
    "Trainer, f32, 4 x 4": Contestant(trainers(4)),
    "Trainer, f32, by length, 8 x 2": Contestant(trainers(8, by_length=True)),
    "Trainer, f32, by length, 4 x 4": Contestant(trainers(4, by_length=True)),
    "Trainer, f32, by length, 4 x 4, blocks kept": Contestant(trainers(4, by_length=True), KEEP_FREED),
    "Trainer, bf16, 8 x 2 (as documented)": Contestant(trainers(8, torch.bfloat16, checkpointing=True)),
}


def measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with rates, after a check that all saw the same examples and targets; an ended one gives a bound."""
    firsts = [row["first"] for row in rows if row["first"]]
    seen = {tuple(first[name] for name in ("examples", "supervised", "tokens")) for first in firsts}
    assert len(seen) == 1, f"the contestants saw different data: {seen}"
    [(examples, supervised, tokens)] = seen
    for row in rows:
        row["examples_per_second"] = examples / row["seconds"]
        row["supervised_per_second"] = supervised / row["seconds"]
        row["padding_share"] = 1 - tokens / row["first"]["cells"] if row["first"] else None
    return rows


def main() -> None:
    parser = command_line(__doc__, rounds=3)
    parser.add_argument("--model", choices=(REAL, RANDOM), default=REAL)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of a turn")
    chosen = parser.parse_args()
    if chosen.worker:
        work(CONTESTANTS[chosen.worker], chosen.folder)
        return
    if missing := absence():
        print(f"skipped: {missing}")
        return
    with tempfile.TemporaryDirectory(prefix="lorasmith-instructions-") as temporary:
        folder = SHARED / "models" / chosen.model if chosen.model == REAL else chosen.folder or Path(temporary)
        if not (folder / "config.json").exists():
            shape = SHAPES[RANDOM]
            make_checkpoint(folder, shape)
            write_tokenizer(folder, shape.vocabulary)
        lengths = [len(example) for example in instructions(folder)]
        numbers = spread(lengths, BATCH * chosen.steps)
        contest = Contest(
            __file__,
            CONTESTANTS,
            folder,
            lambda number: shuffled(numbers, number),
            chosen.rounds,
            chosen.most_seconds,
            not chosen.accept_noise,
            at_once=3,
            slow_seconds=chosen.most_seconds,
        )
        rows = measured(contest.race([one for one in CONTESTANTS if any(text in one for text in chosen.only)]))
    about = {
        **machine(),
        **peers(),
        "model": chosen.model,
        "batch": BATCH,
        "steps": chosen.steps,
        "guarded": not chosen.accept_noise,
        "mean_length": sum(lengths) / len(lengths),
        "epoch_padding_share": epoch_padding_shares(lengths, BATCH),
    }
    save(f"instructions_{chosen.model}", about, rows)
    columns = {"examples/s": "examples_per_second", "learned/s": "supervised_per_second", "padding": "padding_share"}
    print(table(f"instructions, {chosen.model}, {chosen.steps} steps of {BATCH}", about, rows, columns))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in epoch_padding_shares(lengths, BATCH).items())
    print(f"padding of a whole epoch in Trainer's micro-batches: {shares}", flush=True)


if __name__ == "__main__":
    main()
