"""One linear layer with LoRA: ours beside PEFT + bitsandbytes, PEFT on a dense layer, and the dense layer alone.

    python benchmarks/bench_linear.py [--shape 2048x2048 ...] [--rows 1 16 256 1024] [--only TEXT] [--accept-noise]

Shapes are out_features x in_features. All contestants live in one process and take turns in batches (alternating.py);
each has so many copies of its layer that no cache holds them, and goes round them as a model does. NF4 with double
quantization, rank 8; forward is as in evaluation, forward + backward gives the input's and the adapter's gradients.
f32 and bf16 are the types of the activations, the dense weights and bitsandbytes' products; PEFT's bf16 runs under
autocast, as it is trained. What takes over two seconds is timed once, and not at more rows, where its row holds that
time as a bound. The limit is the larger of the products' time at the machine's rate and the time to read the stored
weight (again for backward) and move x, y and their gradients once. Writes results/linear.json.
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import torch
from adapted_models import ALPHA, RANK
from alternating import Samples, alternate, can_reject
from limits import limits, matmul_limit
from quiet import machine
from results import FOLDER, peers, save, spread, table
from torch import Tensor, nn

import lorasmith

ADAPTER: dict[str, Any] = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["layer"]}
COPIED_BYTES = 1 << 27  # of one contestant's weights
SHAPES = ("2048x2048", "5632x2048")
PASSES = ("forward", "forward + backward")


class Holder(nn.Module):
    """A model of one layer, for libraries that adapt models."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def ours(dense: nn.Linear) -> nn.Module:
    model = lorasmith.get_peft_model(Holder(dense), lorasmith.LoraConfig(**ADAPTER))
    return model.base_model.model.layer


def ours_quantized(dense: nn.Linear) -> nn.Module:
    return ours(lorasmith.quantize_module(dense, lorasmith.Scheme("nf4")))


def pefts(layer: nn.Module) -> nn.Module:
    holder = Holder(layer)
    # what transformers writes on the model it quantized; without it PEFT takes its plain LoRA
    holder.is_loaded_in_4bit = isinstance(layer, bitsandbytes.nn.Linear4bit)
    return peft.get_peft_model(holder, peft.LoraConfig(**ADAPTER)).base_model.model.layer


def pefts_quantized(dense: nn.Linear) -> nn.Module:
    out_features, in_features = dense.weight.shape
    layer = bitsandbytes.nn.Linear4bit(in_features, out_features, False, dense.weight.dtype, quant_type="nf4")
    layer.load_state_dict(dense.state_dict())
    adapted = pefts(layer.to("cpu"))
    assert isinstance(adapted, peft.tuners.lora.bnb.Linear4bit), type(adapted)
    return adapted


def alone(dense: nn.Linear) -> nn.Module:
    return dense


@dataclass(frozen=True)
class Contestant:
    """make turns a frozen dense layer of dtype into the contestant's; autocast is how it is trained in 16 bits."""

    make: Callable[[nn.Linear], nn.Module]
    dtype: torch.dtype
    autocast: bool = False


CONTESTANTS = {
    "ours, NF4 + DQ": Contestant(ours_quantized, torch.bfloat16),
    "ours, bf16 base": Contestant(ours, torch.bfloat16),
    "PEFT + bitsandbytes, bf16": Contestant(pefts_quantized, torch.bfloat16, autocast=True),
    "PEFT + bitsandbytes, f32": Contestant(pefts_quantized, torch.float32),
    "PEFT, bf16 base": Contestant(pefts, torch.bfloat16, autocast=True),
    "PEFT, f32 base": Contestant(pefts, torch.float32),
    "dense layer alone, bf16": Contestant(alone, torch.bfloat16),
    "dense layer alone, f32": Contestant(alone, torch.float32),
}


class Layers:
    """A contestant's layer in so many copies that no cache holds them, taken one after the other, for one pass.

    What libraries do at a layer's first call (bitsandbytes packs it anew where it is not to be trained) comes before.
    """

    def __init__(self, contestant: Contestant, weight_OI: Tensor, backward: bool) -> None:
        out_features, in_features = weight_OI.shape
        dense = nn.Linear(in_features, out_features, bias=False, dtype=contestant.dtype)
        dense.weight = nn.Parameter(weight_OI.to(contestant.dtype), requires_grad=False)
        layer = contestant.make(dense).train(backward)
        self.contestant, self.backward, self.shape = contestant, backward, (out_features, in_features)
        self.adapted = any(one.requires_grad for one in layer.parameters())
        self.stored = sum(one.nbytes for one in layer.parameters() if not one.requires_grad)
        layers = [layer, *(copy.deepcopy(layer) for _ in range(COPIED_BYTES // self.stored))]
        self.turn = itertools.cycle(layers)
        first_call = self.function(1)
        for _ in layers:
            first_call()

    def function(self, rows: int) -> Callable[[], object]:
        """A call of the next copy, on the same x [rows, in_features] each time."""
        dtype, autocast = self.contestant.dtype, self.contestant.autocast
        x_NI = torch.randn(rows, self.shape[1]).to(dtype).requires_grad_(self.backward)
        grad_NO = torch.randn(rows, self.shape[0]).to(dtype)

        def forward(layer: nn.Module) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return layer(x_NI)

        def both() -> tuple[Tensor, ...]:
            layer = next(self.turn)
            trained = [one for one in layer.parameters() if one.requires_grad]
            return torch.autograd.grad(forward(layer), [x_NI, *trained], grad_NO)

        return both if self.backward else torch.no_grad()(lambda: forward(next(self.turn)))

    def least_seconds(self, rows: int, found: Mapping[str, float]) -> float:
        """What this machine needs at least: for the products, or for moving what must be moved."""
        backward = self.backward
        out_features, in_features = self.shape
        products = rows * out_features * in_features * (2 if backward else 1)
        if self.adapted:
            products += rows * RANK * (out_features + in_features) * (3 if backward else 1)
        moved = self.stored + rows * (out_features + in_features) * self.contestant.dtype.itemsize
        return max(2 * products / matmul_limit(found), moved * (2 if backward else 1) / found["read"])


@dataclass(frozen=True)
class Race:
    """Who runs on one shape in one pass, and how; slow holds what took too long to be timed at more rows."""

    layers: Mapping[str, Layers]
    batches: int
    guarded: bool
    found: Mapping[str, float]
    slow: dict[str, float] = field(default_factory=dict)

    def run(self, rows: int) -> list[dict[str, Any]]:
        """Rows of the table; ratios are to the first contestant."""
        functions = {name: layers.function(rows) for name, layers in self.layers.items() if name not in self.slow}
        samples = alternate(functions, self.batches, self.guarded)
        made = []
        for name, layers in self.layers.items():
            row = self._row(name, samples.get(name))
            share = layers.least_seconds(rows, self.found) / row["seconds"]
            made.append({"name": name, "rows": rows, "weight_bytes": layers.stored, **row, "share_of_limit": share})
        for row in made:
            row["ratio"] = row["seconds"] / made[0]["seconds"]
        return made

    def _row(self, name: str, kept: Samples | None) -> dict[str, Any]:
        if kept is None:
            return {**spread([self.slow[name]]), "note": "over", "samples": 0, "rejected": 0}
        if kept.cold:
            self.slow[name] = kept.times[0]
        note = "cold" if kept.cold else ""
        return {**spread(kept.times), "note": note, "samples": len(kept.times), "rejected": kept.rejected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="*", default=SHAPES, help="OUTxIN")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 16, 256, 1024])
    parser.add_argument("--only", nargs="*", default=[""], help="contestants whose names hold one of these texts")
    parser.add_argument("--batches", type=int, default=9, help="accepted batches of each")
    parser.add_argument("--accept-noise", action="store_true", help="reject no batch: for development")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder that the result is written into")
    chosen = parser.parse_args()
    guarded = can_reject() and not chosen.accept_noise
    about = {**machine(), **peers(), "guarded": guarded, "limits": limits()}
    names = [name for name in CONTESTANTS if any(text in name for text in chosen.only)]
    rows: list[dict[str, Any]] = []
    for shape, backward in itertools.product(chosen.shape, (False, True)):
        weight_OI = torch.randn([int(size) for size in shape.split("x")]) * 0.02
        layers = {name: Layers(CONTESTANTS[name], weight_OI, backward) for name in names}
        race = Race(layers, chosen.batches, guarded, about["limits"])
        for count in sorted(chosen.rows):
            made = [{"shape": shape, "pass": PASSES[backward], **row} for row in race.run(count)]
            title = f"{shape}, {count} rows, {PASSES[backward]}"
            print(table(title, about, made, {"of limit": "share_of_limit"}), flush=True)
            rows += made
    save("linear", about, rows, chosen.results)


if __name__ == "__main__":
    main()
