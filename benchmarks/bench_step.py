"""A whole training step: ours beside PEFT + bitsandbytes and PEFT's plain LoRA, on one random checkpoint.

    python benchmarks/bench_step.py [--shapes 134m|1b|7b ...] [--rounds 7] [--only TEXT] [--accept-noise]

Every contestant lives in a process of its own, loads the same bf16 checkpoint in its own way, and takes a step in turn
with the others (contest.py). Rank 8 on all linear layers, AdamW, all tokens supervised, the same tokens for all. Peers
run as their documentation sets them up and in the best setting found here. `peak` is the resident memory's peak while
training, `loading` the one before; live is the sum of live tensors at its highest. Model FLOPs are 4 a parameter and
token, and 6 x layers x T x hidden a token for causal attention (recomputation not counted); their rate is set against
the faster of an f32 and a bf16 product in the same run. Of 7b only ours runs, and its 13.5 GB checkpoint is removed
afterwards unless --folder says where to keep it. Writes results/step_SHAPE.json.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapted_models
import torch
from contest import KEEP_FREED, Contest, Contestant, Turn, command_line, work
from figures import CHECKPOINTED, OURS, RETURNED
from limits import limits, matmul_limit
from make_checkpoint import SHAPES, Shape, make_checkpoint
from quiet import machine
from results import peers, save, table


@dataclass(frozen=True)
class Size:
    """A model's shape, rows and tokens of a batch, and how many contestants fit into memory together."""

    shape: Shape
    rows: int
    length: int
    at_once: int
    names: tuple[str, ...] | None = None


SIZES = {
    "134m": Size(SHAPES["134m"], 4, 256, 99),
    "1b": Size(SHAPES["1b"], 1, 512, 3),
    "7b": Size(SHAPES["7b"], 1, 512, 1, (RETURNED,)),
}


def tokens(request: list[int]) -> torch.Tensor:
    seed, rows, length, vocabulary = request
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def ours(**how: bool) -> Callable[[Path], Turn]:
    def load(folder: Path) -> Turn:
        step = adapted_models.our_step(adapted_models.ours(folder, **how))

        def turn(request: list[int]) -> dict[str, Any]:
            # past step 1, where the loop refuses gradients that are all zero
            return {"loss": step(request[0] + 1, [adapted_models.packed(tokens(request))], adapted_models.RATE).loss}

        return turn

    return load


def pefts(dtype: torch.dtype, **how: bool) -> Callable[[Path], Turn]:
    def load(folder: Path) -> Turn:
        step = adapted_models.peft_step(adapted_models.pefts(folder, dtype, **how), dtype)
        return lambda request: {"loss": step(tokens(request))}

    return load


CONTESTANTS = {
    OURS: Contestant(ours()),
    CHECKPOINTED: Contestant(ours(checkpointing=True)),
    RETURNED: Contestant(ours(checkpointing=True, return_freed=True)),
    "ours, bf16 base": Contestant(ours(quantized=False)),
    "PEFT + bitsandbytes, bf16 (as documented)": Contestant(pefts(torch.bfloat16, checkpointing=True)),
    "PEFT + bitsandbytes, bf16": Contestant(pefts(torch.bfloat16)),
    "PEFT + bitsandbytes, bf16, freed blocks kept": Contestant(pefts(torch.bfloat16), KEEP_FREED),
    "PEFT + bitsandbytes, f32, checkpointing": Contestant(pefts(torch.float32, checkpointing=True)),
    "PEFT + bitsandbytes, f32": Contestant(pefts(torch.float32)),
    "PEFT + bitsandbytes, f32, freed blocks kept": Contestant(pefts(torch.float32), KEEP_FREED),
    "PEFT, bf16 base": Contestant(pefts(torch.bfloat16, quantized=False)),
    "PEFT, f32 base": Contestant(pefts(torch.float32, quantized=False)),
}


def flops_per_token(size: Size) -> float:
    parameters = sum(torch.Size(one).numel() for name, one in size.shape.tensors() if "embed" not in name)
    return 4 * parameters + 6 * size.shape.layers * size.length * size.shape.hidden


def main() -> None:
    parser = command_line(__doc__, rounds=7)
    parser.add_argument("--shapes", nargs="*", choices=list(SIZES), default=["134m"])
    chosen = parser.parse_args()
    if chosen.worker:
        work(CONTESTANTS[chosen.worker], chosen.folder)
        return
    for name in chosen.shapes:
        size = SIZES[name]
        with tempfile.TemporaryDirectory(prefix="lorasmith-step-") as temporary:
            folder = chosen.folder / name if chosen.folder else Path(temporary)
            if not (folder / "config.json").exists():
                make_checkpoint(folder, size.shape)
            contest = Contest(
                __file__,
                CONTESTANTS,
                folder,
                lambda number, size=size: [number, size.rows, size.length, size.shape.vocabulary],
                chosen.rounds,
                chosen.most_seconds,
                not chosen.accept_noise,
                size.at_once,
            )
            found = limits()
            wanted = [one for one in size.names or CONTESTANTS if any(text in one for text in chosen.only)]
            rows = contest.race(wanted)
        for row in rows:
            row["tokens_per_second"] = size.rows * size.length / row["seconds"]
            row["share_of_limit"] = flops_per_token(size) * row["tokens_per_second"] / matmul_limit(found)
        about = {**machine(), **peers(), "shape": name, "batch": [size.rows, size.length], "limits": found}
        about["guarded"] = not chosen.accept_noise
        columns = {"tokens/s": "tokens_per_second", "of limit": "share_of_limit"}
        save(f"step_{name}", about, rows, chosen.results)
        print(table(f"training step, {name}, {size.rows} x {size.length}", about, rows, columns), flush=True)


if __name__ == "__main__":
    main()
