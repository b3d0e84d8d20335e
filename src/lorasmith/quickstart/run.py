"""The quickstart's run: the task written to files, a recipe, the fine-tuning job, and scores on unseen people."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorasmith.atomic import write_text
from lorasmith.attach import load_adapter
from lorasmith.models.load import load
from lorasmith.quantized import Scheme, count_parameters, stored_bytes
from lorasmith.quickstart.score import exact_match
from lorasmith.quickstart.task import Item, Task, majority, make_task
from lorasmith.quickstart.world import make_world
from lorasmith.recipes.fine_tune import fine_tune
from lorasmith.recipes.recipe import Recipe

BASE = Path(__file__).with_name("base")
SCHEME = Scheme("nf4", 64, double_quant=True)
TRAIN_ITEMS, VALIDATION_ITEMS = 8000, 200
BATCH_SIZE = 32
LEARNING_RATE = 4e-3


@dataclass(frozen=True)
class Options:
    """What a caller may choose: the seed of data and adapter, optimizer steps, and the folder of the run."""

    seed: int = 0
    steps: int = 200
    output: Path = Path("runs/quickstart")
    device: str = "auto"


@dataclass(frozen=True)
class Result:
    """Shares of the test items answered before and after, and bytes of the base (32-bit, quantized) and the adapter."""

    before: float
    after: float
    majority: float
    items: int
    dense_bytes: int
    quantized_bytes: int
    adapter_bytes: int
    folder: Path
    report: Path


def write_records(path: Path, items: Sequence[Item]) -> None:
    """Write items to path as JSON lines with prompt and completion."""
    write_text(path, "".join(json.dumps(item.record()) + "\n" for item in items))


def make_recipe(options: Options, data: Path) -> Recipe:
    """The job on the embedded base and the files train.jsonl and validation.jsonl of the folder data."""
    return Recipe.model_validate(
        {
            "model": {"path": str(BASE), "dtype": "fp32", "offline": True},
            "quantization": {"format": SCHEME.format, "blocksize": SCHEME.blocksize, "double_quant": True},
            "method": {"name": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1},
            "data": {
                "train": str(data / "train.jsonl"),
                "validation": str(data / "validation.jsonl"),
                "max_length": 64,
                "packing": False,
            },
            "training": {
                "max_steps": options.steps,
                "batch_size": BATCH_SIZE,
                "learning_rate": LEARNING_RATE,
                "warmup": 20,
                "dtype": "fp32",
                "save_every": None,
                "log_every": 5,
            },
            "evaluation": {"samples": 5, "max_new_tokens": 4},
            "output": str(options.output),
            "device": options.device,
            "seed": options.seed,
        }
    )


def write_task(task: Task, folder: Path) -> None:
    """Write the task's three files into folder."""
    for name, items in (("train", task.train), ("validation", task.validation), ("test", task.test)):
        write_records(folder / f"{name}.jsonl", items)


def quickstart(options: Options, echo: Callable[[str], None] = print) -> Result:
    """Quantizes the embedded base, scores it, fine-tunes it, and scores the adapter as it lies on the disk.

    The test items are seen by nothing but the two scores. Raises what fine_tune raises.
    """
    task = make_task(make_world(), TRAIN_ITEMS, VALIDATION_ITEMS, options.seed)
    data = options.output.with_name(f"{options.output.name}-data")
    write_task(task, data)
    before = score(task.test, None, options.device)
    finished = fine_tune(make_recipe(options, data), echo)
    after = score(task.test, finished.adapter, options.device)
    base = load(BASE, scheme=SCHEME, dtype=torch.float32, device=options.device, offline=True).model
    return Result(
        before=before,
        after=after,
        majority=majority(task.test),
        items=len(task.test),
        dense_bytes=4 * count_parameters(base).total,
        quantized_bytes=stored_bytes(base),
        adapter_bytes=(finished.adapter / "adapter_model.safetensors").stat().st_size,
        folder=finished.folder,
        report=finished.folder / "report.html",
    )


def score(items: Sequence[Item], adapter: Path | None, device: str) -> float:
    """Exact match of the quantized base on items, with the adapter in that folder or without any."""
    loaded = load(BASE, scheme=SCHEME, dtype=torch.float32, device=device, offline=True)
    assert loaded.tokenizer is not None, "the embedded base has a tokenizer"
    if adapter is not None:
        load_adapter(loaded.model, adapter)
    return exact_match(loaded.model, loaded.tokenizer, items)
