"""Losses of a small QLoRA training on the device against those of the reference in PyTorch on the CPU.

The base is quantized once, by the reference, and both train from its bytes on the same batches; adapters start alike.
In f32 the sums run in another order, and training doubles such differences over its steps; bf16 rounds each product.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import random_llama
import torch
from measuring import STANDBY, Place, command_line, place_of, told
from random_llama import TINY
from training_runs import MadeUp, take_steps

SHAPE = random_llama.Shape(4, 256, 704, 8, 4, 4096)
STEPS, RATE = 8, 1e-3
ALLOWED = {"f32": 1e-3, "bf16": 2e-2}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def losses(where: Place, folder: Path, name: str) -> list[float]:
    """Losses of the steps from the adapted model that lies in folder, or is put there."""
    shape = TINY if where.tiny else SHAPE
    model = random_llama.adapted(random_llama.ours(shape, torch.device("cpu"), DTYPES[name]), 8)
    kept = folder / f"{name}.pt"
    if kept.exists():
        model.get_base_model().load_state_dict(torch.load(kept, weights_only=True))
    else:
        torch.save(model.get_base_model().state_dict(), kept)
    model.to(where.device)
    batches = MadeUp(2, 16 if where.tiny else 128, shape.vocabulary, 3 if where.tiny else STEPS, where.device)
    checkpointing = name == "bf16"
    return take_steps(model, batches, learning_rate=RATE, gradient_checkpointing=checkpointing).losses


def started(folder: Path, tiny: bool) -> "subprocess.Popen[bytes]":
    """The process that writes the reference's losses into folder; it needs no GPU and waits for no turn."""
    options = ["--device", "cpu", "--reference", str(folder), *(["--tiny"] if tiny else [])]
    environment = {name: value for name, value in os.environ.items() if name != STANDBY}
    command = [sys.executable, __file__, *options]
    return subprocess.Popen(command, env={**environment, "LORASMITH_KERNELS": "reference"}, stdin=subprocess.DEVNULL)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--reference", type=Path, help="write the reference's losses into this folder, and no more")
    arguments = parser.parse_args()
    if arguments.reference:
        for name in DTYPES:
            torch.save(
                losses(place_of(arguments), arguments.reference, name), arguments.reference / f"losses_{name}.pt"
            )
        return
    # products of f32 are those of f32
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        reference = started(Path(folder), arguments.tiny)
        where = place_of(arguments)
        if reference.wait() != 0:
            raise SystemExit("the reference failed")
        for name in DTYPES:
            with told(f"losses, {name}", allowed=ALLOWED[name]) as row:
                expected = torch.load(Path(folder) / f"losses_{name}.pt")
                found = losses(where, Path(folder), name)
                gaps = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
                row |= {"found": found, "expected": expected, "gap": max(gaps), "agree": max(gaps) <= ALLOWED[name]}


if __name__ == "__main__":
    main()
