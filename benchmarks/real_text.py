"""LoRA on real weights and real text, beside PEFT's on the same batches: held-out loss before and after.

    python benchmarks/real_text.py [--models stories260k ...] [--seeds 3]

Each model learns Grimm's fairy tales: the first nine tenths of the characters to train on, the last tenth held out (up
to 128 windows of 128 tokens without overlap). 200 steps of 16 random windows of 128, rank 8, alpha 16, all linear
layers, 10 steps of warm-up and then linear to zero, clipped at 1. Ours runs through lorasmith.training on the 32-bit
base and on NF4 with double quantization; PEFT's LoRA on the 32-bit base, in a plain PyTorch loop. Needs the shared
folder of models and texts (LORASMITH_SHARED). Writes results/real_text.json, run by run, and goes
on from there.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from shared import SHARED, require_shared
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorasmith
from lorasmith.atomic import write_text
from lorasmith.data.batch import Batch
from lorasmith.models.packed_attention import enable_packing
from lorasmith.training import RunFolder, TrainingSettings, loss_for, run

RESULTS = Path(__file__).with_name("results") / "real_text.json"
LEARNING_RATES = {"tinystories-656k": 3e-3, "stories260k": 3e-3, "novels-8m": 1e-3}
STEPS, BATCH, LENGTH, WARMUP = 200, 16, 128, 10


def windows(model: str) -> tuple[Tensor, Tensor]:
    """Training tokens [tokens] and held-out windows [windows, LENGTH]."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / model)
    text = (SHARED / "text" / "grimms_fairy_tales.txt").read_text()
    cut = len(text) * 9 // 10
    train, held = (tokenizer(part, add_special_tokens=False).input_ids for part in (text[:cut], text[cut:]))
    count = min(128, len(held) // LENGTH)
    return torch.tensor(train), torch.tensor(held[: count * LENGTH]).view(count, LENGTH)


def random_windows(train: Tensor, seed: int) -> Iterator[Tensor]:
    """Endless batches [BATCH, LENGTH], the same for every contestant of a seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(train) - LENGTH, (BATCH,), generator=generator).tolist()
        yield torch.stack([train[start : start + LENGTH] for start in starts])


@torch.no_grad()
def held_out_loss(model: nn.Module, held: Tensor) -> float:
    """Mean loss per predicted token, by the model's own forward."""
    model.eval()
    total = sum(float(model(input_ids=rows, labels=rows).loss) * len(rows) for rows in held.split(BATCH))
    return total / len(held)


class Stream:
    """The random windows as packed batches for lorasmith's loop."""

    def __init__(self, train: Tensor, seed: int) -> None:
        self.rows = random_windows(train, seed)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.rows:
            labels = rows.clone()
            labels[:, 0] = -100
            positions = torch.arange(LENGTH).repeat(BATCH)[None]
            ends = torch.arange(BATCH + 1, dtype=torch.int32) * LENGTH
            yield Batch(rows.view(1, -1), labels.view(1, -1), None, positions, ends, BATCH * (LENGTH - 1))

    def epoch_batches(self) -> int:
        return STEPS

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def ours(model: str, base: str, seed: int) -> tuple[float, float]:
    """(held-out loss before, after) of lorasmith's LoRA."""
    train, held = windows(model)
    scheme = lorasmith.Scheme() if base == "nf4" else None
    loaded = lorasmith.load(SHARED / "models" / model, scheme=scheme, dtype=torch.float32, device="cpu").model
    torch.manual_seed(seed)
    config = lorasmith.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = lorasmith.get_peft_model(loaded, config)
    before = held_out_loss(adapted, held)
    refused = enable_packing(loaded)
    assert refused is None, refused
    settings = TrainingSettings(
        max_steps=STEPS, learning_rate=LEARNING_RATES[model], warmup=WARMUP, seed=seed, dtype="fp32", save_every=None
    )
    with tempfile.TemporaryDirectory() as folder:
        run(adapted, Stream(train, seed), settings, RunFolder(Path(folder) / "run"), loss=loss_for(adapted, "causal"))
    loaded.set_attn_implementation("sdpa")
    return before, held_out_loss(adapted, held)


def pefts(model: str, seed: int) -> tuple[float, float]:
    """(held-out loss before, after) of PEFT's LoRA on the 32-bit base."""
    train, held = windows(model)
    loaded = AutoModelForCausalLM.from_pretrained(SHARED / "models" / model, dtype=torch.float32)
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(loaded, config)
    before = held_out_loss(adapted, held)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATES[model], weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
    )
    adapted.train()
    for _, rows in zip(range(STEPS), random_windows(train, seed)):
        adapted(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return before, held_out_loss(adapted, held)


CONTESTANTS = {
    "PEFT, 32-bit": lambda model, seed: pefts(model, seed),
    "ours, 32-bit": lambda model, seed: ours(model, "f32", seed),
    "ours, NF4 + DQ": lambda model, seed: ours(model, "nf4", seed),
}


def summary(rows: list[dict[str, Any]], model: str) -> str:
    """One printed line a contestant: means over the seeds, the range, and the distance to PEFT's mean."""
    lines = [f"{model} (lr {LEARNING_RATES[model]:g})"]
    reference = None
    for name in CONTESTANTS:
        mine = [row for row in rows if row["model"] == model and row["contestant"] == name]
        after = [row["after"] for row in mine]
        mean = statistics.mean(after)
        reference = mean if reference is None else reference
        lines.append(
            f"  {name:15s} {mine[0]['before']:.3f} -> {mean:.4f} ({min(after):.4f} to {max(after):.4f}, "
            f"{len(after)} seeds), {mean - reference:+.4f} to PEFT"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(LEARNING_RATES), choices=list(LEARNING_RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="measure again what the results file holds already")
    chosen = parser.parse_args()
    require_shared(parser)
    rows: list[dict[str, Any]] = []
    if RESULTS.is_file() and not chosen.fresh:
        rows = json.loads(RESULTS.read_text())["rows"]
    versions = {"torch": torch.__version__, "peft": peft.__version__, "lorasmith": lorasmith.__version__}
    for model in chosen.models:
        for seed, name in itertools.product(range(chosen.seeds), CONTESTANTS):
            who = {"model": model, "contestant": name, "seed": seed}
            if any(who.items() <= row.items() for row in rows):
                continue
            before, after = CONTESTANTS[name](model, seed)
            rows.append({**who, "before": round(before, 4), "after": round(after, 4)})
            write_text(RESULTS, json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
        print(summary(rows, model), flush=True)


if __name__ == "__main__":
    main()
