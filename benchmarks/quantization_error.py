"""What LoftQ and QPiSSA leave of a format's error, by iterations, on a real model.

    python benchmarks/quantization_error.py [--model novels-8m] [--rank 16] [--folder FOLDER]

For every adapted linear layer W, and Q and s B A as the start leaves them: the root of the sum over layers of
|W - (Q + s B A)|^2 over that of |W - quantize(W)|^2 (Frobenius norms), quantize being what the plain format does.
Writes results/quantization_error.json and prints the table of docs/initialization.md.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from results import FOLDER, save
from shared import SHARED, require_shared
from torch import nn

from lorasmith.attach import adapters_of, attach
from lorasmith.formats import formats
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.load import load
from lorasmith.quantized import quantize_module

STARTS = ("loftq", "qpissa")
ITERATIONS = (1, 2, 5)


def dense_layers(folder: Path) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A fresh model in f32, and the weight of every linear layer that adapters are placed on."""
    model = load(folder, dtype=torch.float32, device="cpu", offline=True).model
    book = attach(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    weights = {path: adapted.base_weight().clone() for path, adapted in book.adapted()}
    book.remove("default")
    return model, weights


@torch.no_grad()
def rows(folder: Path, rank: int) -> Iterator[dict[str, Any]]:
    for form in ("nf4", "fp4", "int4", "int8"):
        for start in STARTS:
            for iterations in ITERATIONS:
                model, weights = dense_layers(folder)
                settings = {"format": form, "loftq_bits": formats[form].bits, "loftq_iter": iterations}
                began = time.perf_counter()
                fields = {"r": rank, "lora_alpha": rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
                attach(model, LoraConfig(init_lora_weights=start, loftq_config=settings, **fields))
                seconds = time.perf_counter() - began
                left = plain = 0.0
                for path, adapted in adapters_of(model).adapted():
                    weight, site = weights[path], adapted.sites["default"]
                    dense = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                    dense.weight.copy_(weight)
                    alone = quantize_module(dense, adapted.base_layer.scheme).dequantize()
                    held = adapted.base_layer.dequantize(torch.float32) + site.delta(weight)
                    left += float((weight - held).square().sum())
                    plain += float((weight - alone).square().sum())
                yield {
                    "format": form,
                    "start": start,
                    "iterations": iterations,
                    "error": (left / plain) ** 0.5,
                    "seconds": round(seconds, 2),
                }


def table(found: list[dict[str, Any]]) -> str:
    """The errors as Markdown: a row a format, a column a start and its iterations."""
    columns = [(start, count) for start in STARTS for count in ITERATIONS]
    names = {"loftq": "LoftQ", "qpissa": "QPiSSA"}
    lines = ["| Format | " + " | ".join(f"{names[start]}, {count}" for start, count in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for form in dict.fromkeys(row["format"] for row in found):
        errors = {(row["start"], row["iterations"]): row["error"] for row in found if row["format"] == form}
        lines.append(f"| `{form}` | " + " | ".join(f"{errors[column]:.3f}" for column in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="novels-8m")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    require_shared(parser)
    found = list(rows(SHARED / "models" / options.model, options.rank))
    save("quantization_error", {"model": options.model, "rank": options.rank}, found, options.folder)
    print(table(found))


if __name__ == "__main__":
    main()
