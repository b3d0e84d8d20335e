"""A whole training step: ours beside PEFT + bitsandbytes and PEFT's plain LoRA, on one random checkpoint.

    python benchmarks/bench_step.py [--shape 134m] [--rounds 7] [--only TEXT] [--accept-noise]

Every contestant lives in a process of its own, loads the same bf16 checkpoint in its own way, and takes a step in turn
with the others, so that all see the same machine; a round that other processes disturbed is taken again. Rank 8 on all
linear layers, AdamW, all tokens supervised, the same tokens for all. Peers run as their documentation sets them up and
in the best setting found here. A contestant whose step takes over a minute is timed once. Memory is VmHWM, with
anonymous and file pages beside it. Model FLOPs are 4 a parameter and token (head included, recomputation not); their
rate is set against the faster of an f32 and a bf16 product of 2048 x 2048 x 2048 in the same run.
Writes results/step_SHAPE.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from make_checkpoint import Shape, make_checkpoint
from quiet import Watch, machine

from lorasmith.atomic import write_text

SHAPES = {
    "134m": (Shape(12, 768, 2048, 12, 12, 32000), 4, 256),
    "1b": (Shape(), 1, 512),
    "7b": (Shape(32, 4096, 11008, 32, 32, 32000), 1, 512),
}
RANK, ALPHA, RATE = 8, 16, 2e-4
SLOW_SECONDS = 60.0
# glibc keeps freed blocks for the next step instead of giving them back and faulting them in again
KEEP_FREED = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"}


@dataclass(frozen=True)
class Contestant:
    """One way to train: load(folder) gives a function that takes a step on [B, T] tokens and returns its loss."""

    load: Callable[[Path], Callable[[torch.Tensor], float]]
    environment: dict[str, str] = field(default_factory=dict)


def ours(checkpointing: bool = False, quantized: bool = True) -> Callable[[Path], Callable[[torch.Tensor], float]]:
    def load(folder: Path) -> Callable[[torch.Tensor], float]:
        import lorasmith
        from lorasmith.data.batch import Batch
        from lorasmith.models.activation_checkpointing import checkpoint_activations_
        from lorasmith.models.packed_attention import enable_packing
        from lorasmith.training import TrainingSettings, loss_for
        from lorasmith.training.checkpoint import trainable_parameters
        from lorasmith.training.optimizers import build
        from lorasmith.training.step import TrainingStep

        scheme = lorasmith.Scheme("nf4") if quantized else None
        base = lorasmith.load(folder, scheme=scheme, device="cpu").model
        config = lorasmith.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        model = lorasmith.get_peft_model(base, config)
        assert enable_packing(base) is None
        if checkpointing:
            checkpoint_activations_(base)
        model.train()
        parameters = trainable_parameters(model)
        settings = TrainingSettings(learning_rate=RATE, max_steps=1)
        step = TrainingStep(
            parameters, build(parameters, settings), loss_for(model, "causal"), settings.clip, torch.bfloat16
        )
        taken = 0

        def take(tokens: torch.Tensor) -> float:
            nonlocal taken
            taken += 1
            rows, length = tokens.shape
            labels = tokens.clone()
            labels[:, 0] = -100
            positions = torch.arange(length).repeat(rows)[None]
            ends = torch.arange(rows + 1, dtype=torch.int32) * length
            batch = Batch(tokens.view(1, -1), labels.view(1, -1), None, positions, ends, rows * (length - 1))
            return step(taken, [batch], RATE).loss

        return take

    return load


def pefts(
    quantized: bool, dtype: torch.dtype, checkpointing: bool
) -> Callable[[Path], Callable[[torch.Tensor], float]]:
    def load(folder: Path) -> Callable[[torch.Tensor], float]:
        import peft
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        how: dict[str, Any] = {"dtype": dtype}
        if quantized:
            how["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        base = AutoModelForCausalLM.from_pretrained(folder, **how)
        if quantized:
            base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
        elif checkpointing:
            base.gradient_checkpointing_enable()
            base.enable_input_require_grads()
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(base, config)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

        def take(tokens: torch.Tensor) -> float:
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return float(loss)

        return take

    return load


CONTESTANTS: dict[str, Contestant] = {
    "ours, NF4 + DQ": Contestant(ours()),
    "ours, NF4 + DQ, checkpointing": Contestant(ours(checkpointing=True)),
    "ours, bf16 base": Contestant(ours(quantized=False)),
    "PEFT + bitsandbytes, bf16 (as documented)": Contestant(pefts(True, torch.bfloat16, True)),
    "PEFT + bitsandbytes, f32, checkpointing": Contestant(pefts(True, torch.float32, True)),
    "PEFT + bitsandbytes, f32": Contestant(pefts(True, torch.float32, False)),
    "PEFT + bitsandbytes, f32, freed blocks kept": Contestant(pefts(True, torch.float32, False), KEEP_FREED),
    "PEFT + bitsandbytes, bf16, no checkpointing": Contestant(pefts(True, torch.bfloat16, False)),
    "PEFT, bf16 base": Contestant(pefts(False, torch.bfloat16, False)),
    "PEFT, f32 base": Contestant(pefts(False, torch.float32, False)),
}


def status_bytes() -> dict[str, int]:
    """VmHWM, RssAnon and RssFile of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile")}


def work(name: str, folder: Path) -> None:
    """The life of a contestant: a line of JSON in for a step's seed and sizes, a line out with what it took."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    began = time.perf_counter()
    take = CONTESTANTS[name].load(folder)
    print(json.dumps({"load_seconds": time.perf_counter() - began}), file=out, flush=True)
    for line in sys.stdin:
        seed, rows, length, vocabulary = json.loads(line)
        tokens = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
        wall, own = time.perf_counter(), time.process_time()
        loss = take(tokens)
        answer = {"loss": loss, "seconds": time.perf_counter() - wall, "cpu": time.process_time() - own}
        print(json.dumps(answer | status_bytes()), file=out, flush=True)


class Worker:
    """A contestant's process, seen from outside."""

    def __init__(self, name: str, folder: Path) -> None:
        command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
        environment = os.environ | CONTESTANTS[name].environment
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.load_seconds = self._answer()["load_seconds"]
        self.steps: list[dict[str, float]] = []

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant ended with {self.process.wait()}")
        return json.loads(line)

    def step(self, seed: int, rows: int, length: int, vocabulary: int) -> dict[str, float]:
        assert self.process.stdin is not None
        print(json.dumps([seed, rows, length, vocabulary]), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a square product, the best of several."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
        if times[-1] > 2:
            break
    return 2 * 2048**3 / min(times)


def race(
    names: list[str], folder: Path, rounds: int, size: tuple[int, int, int], guarded: bool
) -> list[dict[str, Any]]:
    """Rows of the table, in the order of names."""
    workers = {}
    for name in names:
        workers[name] = Worker(name, folder)
        first = workers[name].step(0, *size)
        workers[name].steps.append(first | {"warm": 0})
        print(f"{name}: loaded in {workers[name].load_seconds:.1f} s, first step {first['seconds']:.1f} s", flush=True)
    for attempt in range(1, 5 * rounds):
        open_names = [n for n in names if _wanted(workers[n], rounds)]
        if not open_names:
            break
        for name in open_names:
            watch = Watch()
            taken = workers[name].step(attempt, *size)
            if not guarded or not watch.disturbed(taken["cpu"]):
                workers[name].steps.append(taken | {"warm": 1})
    rows = []
    for name in names:
        rows.append({"name": name, **_summary(workers[name])})
        workers[name].close()
    return rows


def _summary(worker: Worker) -> dict[str, Any]:
    steps = [step for step in worker.steps if step["warm"]] or worker.steps
    seconds = [step["seconds"] for step in steps]
    return {
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "samples": len(seconds),
        "load_seconds": worker.load_seconds,
        "first_loss": worker.steps[0]["loss"],
        **{key: max(step[key] for step in worker.steps) for key in ("VmHWM", "RssAnon", "RssFile")},
    }


def _wanted(worker: Worker, rounds: int) -> bool:
    slow = worker.steps[0]["seconds"] > SLOW_SECONDS
    return not slow and sum(step["warm"] for step in worker.steps) < rounds


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The printed table; ratios are to the first row."""
    heads = ["s a step", "least", "most", "n", "x ours", "tokens/s", "of limit", "peak GiB", "anon"]
    lines = [" " * 44 + "".join(f"{head:>9}" for head in heads)]
    for row in rows:
        times = [row["seconds"], row["least"], row["most"]]
        cells = [f"{seconds:.2f}" for seconds in times] + [
            str(row["samples"]),
            f"{row['seconds'] / rows[0]['seconds']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['share_of_limit']:.0%}",
            *(f"{row[key] / 2**30:.2f}" for key in ("VmHWM", "RssAnon")),
        ]
        lines.append(f"{row['name']:<44}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="134m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[""], help="contestants whose names hold one of these texts")
    parser.add_argument("--accept-noise", action="store_true", help="reject no round: for development")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="a checkpoint that is made already")
    chosen = parser.parse_args()
    if chosen.worker:
        work(chosen.worker, chosen.folder)
        return
    shape, batch, length = SHAPES[chosen.shape]
    names = [name for name in CONTESTANTS if any(text in name for text in chosen.only)]
    rates = {str(dtype): matmul_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    about = {**machine(), "shape": chosen.shape, "batch": [batch, length], "guarded": not chosen.accept_noise}
    about["matmul_flops"] = rates
    for key, value in about.items():
        print(f"{key}: {value}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary) / "model"
        if not (folder / "config.json").exists():
            make_checkpoint(folder, shape)
        rows = race(names, folder, chosen.rounds, (batch, length, shape.vocabulary), not chosen.accept_noise)
    parameters = sum(torch.Size(size).numel() for name, size in shape.tensors() if "embed" not in name)
    for row in rows:
        row["tokens_per_second"] = batch * length / row["seconds"]
        row["share_of_limit"] = 4 * parameters * row["tokens_per_second"] / max(rates.values())
    print("\n".join(["", *table_lines(rows)]))
    result = Path(__file__).parent / "results" / f"step_{chosen.shape}.json"
    write_text(result, json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
