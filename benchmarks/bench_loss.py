"""Losses of 50 steps beside PEFT + bitsandbytes, both from the same adapter on the same batches.

    python benchmarks/bench_loss.py [--cases novels-8m/f32 tinystories-656k/bf16 ...] [--seeds 3]

NF4 with double quantization in each library's own way; LoRA, rank 8, on all linear layers, whose start PEFT draws and
saves and both read; the same AdamW, clipped at 1, at a constant rate. The real models learn 16 random windows of 128
tokens of Grimm's tales a step (from the shared folder, LORASMITH_SHARED; without it they are left out), the random 134M
shape 2 rows of 128 random tokens. A step's loss is that of its batch before the update, so that of step 51 is the loss
after 50 steps. Writes results/loss.json.
"""

import argparse
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import adapted_models
import torch
from make_checkpoint import SHAPES, make_checkpoint
from quiet import machine
from real_text import random_windows, windows
from results import peers, save
from shared import SHARED, absence
from torch import Tensor

STEPS = 50
MARKS = (1, 10, 25, 50, 51)
BOUND = 0.005
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A model, the type of its activations and the learning rate; random is a made checkpoint on random tokens."""

    model: str
    activations: str
    rate: float
    random: bool = False


CASES = {
    "novels-8m/f32": Case("novels-8m", "f32", 1e-3),
    "tinystories-656k/f32": Case("tinystories-656k", "f32", 3e-3),
    "tinystories-656k/bf16": Case("tinystories-656k", "bf16", 3e-3),
    "134m/f32": Case("134m", "f32", 1e-3, random=True),
}


def checkpoint(case: Case, temporary: Path) -> Path:
    """The folder of the case's model, made in temporary where it is random."""
    if not case.random:
        return SHARED / "models" / case.model
    folder = temporary / case.model
    if not folder.exists():
        make_checkpoint(folder, SHAPES[case.model])
    return folder


def batches(case: Case, seed: int) -> list[Tensor]:
    """Rows of tokens [B, T] for every step."""
    if case.random:
        generator = torch.Generator().manual_seed(seed)
        # few of the vocabulary's tokens, so that there is something to learn
        return [torch.randint(256, (2, 128), generator=generator) for _ in range(STEPS + 1)]
    return list(islice(random_windows(windows(case.model)[0], seed), STEPS + 1))


def our_losses(case: Case, folder: Path, adapter: Path, rows: list[Tensor]) -> list[float]:
    model = adapted_models.ours(folder, TYPES[case.activations], adapter=adapter)
    step = adapted_models.our_step(model, torch.bfloat16 if case.activations == "bf16" else None)
    return [step(number, [adapted_models.packed(one)], case.rate).loss for number, one in enumerate(rows, 1)]


def peer_losses(case: Case, folder: Path, adapter: Path, rows: list[Tensor]) -> list[float]:
    dtype = TYPES[case.activations]
    step = adapted_models.peft_step(adapted_models.pefts(folder, dtype, adapter=adapter), dtype, case.rate)
    return [step(one) for one in rows]


def compare(case: Case, seed: int, temporary: Path) -> dict[str, Any]:
    """A row of the results: both libraries' losses, and their relative differences at MARKS and at most."""
    folder, adapter = checkpoint(case, temporary), temporary / f"{case.model}-adapter-{seed}"
    if not adapter.exists():
        adapted_models.write_adapter(folder, adapter, seed)
    rows = batches(case, seed)
    ours, theirs = our_losses(case, folder, adapter, rows), peer_losses(case, folder, adapter, rows)
    differences = [mine / other - 1 for mine, other in zip(ours, theirs, strict=True)]
    return {
        "model": case.model,
        "activations": case.activations,
        "seed": seed,
        "learning_rate": case.rate,
        "differences": {str(mark): differences[mark - 1] for mark in MARKS},
        "greatest": max(map(abs, differences)),
        "ours": [round(loss, 6) for loss in ours],
        "peft": [round(loss, 6) for loss in theirs],
    }


def described(row: dict[str, Any]) -> str:
    """A printed line for each mark, and one for the greatest difference."""
    lines = [f"{row['model']}, {row['activations']}, seed {row['seed']} (lr {row['learning_rate']:g})"]
    for mark in MARKS:
        losses = f"ours {row['ours'][mark - 1]:.5f}  PEFT {row['peft'][mark - 1]:.5f}"
        lines.append(f"  step {mark:2d}  {losses}  {row['differences'][str(mark)]:+.1e}")
    verdict = "within" if row["greatest"] <= BOUND else "beyond"
    return "\n".join([*lines, f"  greatest of {len(row['ours'])} steps {row['greatest']:.1e}: {verdict} {BOUND:.1%}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    missing = absence()
    cases = [CASES[name] for name in chosen.cases if CASES[name].random or missing is None]
    if len(cases) < len(chosen.cases):
        print(f"real models are left out: {missing}")
    about = {**machine(), **peers(), "steps": STEPS, "bound": BOUND}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lorasmith-loss-") as temporary:
        for case in cases:
            for seed in range(chosen.seeds):
                rows.append(compare(case, seed, Path(temporary)))
                save("loss", about, rows)
                print(described(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
