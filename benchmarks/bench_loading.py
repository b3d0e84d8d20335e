"""Loading a bf16 checkpoint into NF4 with double quantization: ours beside transformers + bitsandbytes.

    python benchmarks/bench_loading.py [--shape 1b|134m] [--rounds 5] [--only TEXT] [--accept-noise] [--folder FOLDER]

Every load has a fresh process, which has imported all it needs (it loaded a model of one small layer first) and starts
counting its memory anew; the contestants take turns (contest.py). The shards lie in the page cache. A load ends when
every stored byte of the model has been read once, so that nothing lazy is left. share_of_limit is the traffic that
cannot be avoided, the checkpoint read and the model written, a second, over the machine's rate of copying;
share_of_read is the checkpoint's alone over that of reading. Ours is held to a bound on memory, the stored model + its
two largest tensors + 600 MiB: the loader with all of its resident memory, transformers' hook, which maps the shards,
with its anonymous part. Exit code 1 where one exceeds it. Writes results/loading.json, or loading_134m.json.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from adapted_models import peers_base
from contest import Contest, Contestant, Turn, command_line, work
from limits import memory_limits
from make_checkpoint import SHAPES, Shape, make_checkpoint
from quiet import machine
from resident import status
from results import peers, save, table
from torch import nn

MIB = 2**20
ALLOWANCE = 600 * MIB
# our row -> the key of the memory that it is held to
HELD = {"ours": "peak", "ours, transformers' hook": "anonymous"}


def stored(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that the model holds, once; bitsandbytes keeps its scales beside the parameters."""
    found = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        found += state.as_dict(packed=True).values() if state else []
    return iter({id(one): one for one in found}.values())


def read_through(tensor: torch.Tensor) -> int:
    """A sum over all bytes of tensor, at the speed of memory."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    return int(data[:whole].view(torch.int64).sum()) + int(data[whole:].sum())


def loading(load: Callable[[Path], nn.Module]) -> Callable[[Path], Turn]:
    def prepare(folder: Path) -> Turn:
        with tempfile.TemporaryDirectory(prefix="lorasmith-small-") as small:
            make_checkpoint(Path(small), Shape(1, 64, 128, 2, 2, 128))
            load(Path(small))

        def turn(_: Any) -> dict[str, Any]:
            before = status()
            model = load(folder)
            began = time.perf_counter()
            codes = sum(read_through(one) for one in model.parameters() if one.dtype == torch.uint8)
            rest = sum(read_through(one) for one in stored(model) if one.dtype != torch.uint8)
            took = time.perf_counter() - began
            sizes = {"model": sum(one.nbytes for one in stored(model)), "before": before["VmRSS"]}
            return {"codes": codes, "rest": rest, "read_through_seconds": took, **sizes}

        return turn

    return prepare


def ours(folder: Path) -> nn.Module:
    import lorasmith

    return lorasmith.load(folder, scheme=lorasmith.Scheme("nf4"), device="cpu").model


def hook(folder: Path) -> nn.Module:
    import transformers

    import lorasmith

    return transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=lorasmith.QuantizationConfig())


def theirs(dtype: torch.dtype) -> Callable[[Path], nn.Module]:
    return lambda folder: peers_base(folder, dtype, quantized=True)


CONTESTANTS = {
    "ours": Contestant(loading(ours)),
    "ours, transformers' hook": Contestant(loading(hook)),
    "transformers + bitsandbytes, bf16": Contestant(loading(theirs(torch.bfloat16))),
    "transformers + bitsandbytes, f32": Contestant(loading(theirs(torch.float32))),
}


def into_page_cache(folder: Path) -> int:
    """Read every shard once; returns their bytes."""
    total = 0
    for shard in sorted(folder.glob("*.safetensors")):
        with shard.open("rb") as file:
            while part := file.read(16 * MIB):
                total += len(part)
    return total


def two_largest(shape: Shape) -> int:
    sizes = sorted((2 * torch.Size(size).numel() for _, size in shape.tensors()), reverse=True)
    return sum(sizes[:2])


def hold(row: dict[str, Any], checkpoint_bytes: int, largest: int, found: dict[str, float]) -> None:
    """Add rates, shares and the bound to a row of a contestant that was not ended."""
    if row["first"] is None:
        return
    model = row["first"]["model"]
    row["bytes_read_per_second"] = checkpoint_bytes / row["seconds"]
    row["share_of_read"] = row["bytes_read_per_second"] / found["read"]
    row["share_of_limit"] = (checkpoint_bytes + model) / row["seconds"] / found["copy"]
    row["model"] = model
    if row["name"] in HELD:
        row["bound"] = model + largest + ALLOWANCE
        row["within"] = row[HELD[row["name"]]] < row["bound"]


def main() -> int:
    parser = command_line(__doc__, rounds=5)
    parser.set_defaults(most_seconds=600.0)
    parser.add_argument("--shape", choices=("134m", "1b"), default="1b")
    chosen = parser.parse_args()
    if chosen.worker:
        work(CONTESTANTS[chosen.worker], chosen.folder)
        return 0
    shape, guarded = SHAPES[chosen.shape], not chosen.accept_noise
    names = [name for name in CONTESTANTS if any(text in name for text in chosen.only)]
    with tempfile.TemporaryDirectory(prefix="lorasmith-loading-") as temporary:
        folder = chosen.folder or Path(temporary)
        if not (folder / "config.json").exists():
            make_checkpoint(folder, shape)
        found = memory_limits()
        checkpoint_bytes = into_page_cache(folder)
        contest = Contest(
            __file__,
            CONTESTANTS,
            folder,
            lambda number: number,
            chosen.rounds,
            chosen.most_seconds,
            guarded,
            fresh=True,
            slow_seconds=chosen.most_seconds,
            sample_seconds=0.005,
        )
        rows = contest.race(names)
    for row in rows:
        hold(row, checkpoint_bytes, two_largest(shape), found)
    about = {**machine(), **peers(), "shape": chosen.shape, "checkpoint_bytes": checkpoint_bytes}
    about |= {"limits": found, "guarded": guarded}
    save("loading" if chosen.shape == "1b" else f"loading_{chosen.shape}", about, rows, chosen.results)
    columns = {"of limit": "share_of_limit", "of read": "share_of_read"}
    print(table(f"loading, {chosen.shape}", about, rows, columns), flush=True)
    above = [row["name"] for row in rows if not row.get("within", True)]
    print(f"above the bound on memory: {', '.join(above) or 'none'}")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
