"""Predicted against measured memory of `lorasmith train`, on six configurations.

Each configuration is a random checkpoint and a recipe. The prediction is plan.json, written before the weights are
loaded; the measurement is the highest resident memory of that same process (VmHWM).

    python benchmarks/plan_accuracy.py [--only NAME] [--keep FOLDER]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from resident import Resident
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

WITHIN = 0.15
STEPS = 4
LORASMITH = "import sys; from lorasmith.cli.main import main; sys.exit(main())"
LLAMA_134M = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 32000,
}
NOVELS_8M = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
}
MINILM = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 30522,
}


@dataclass(frozen=True)
class Configuration:
    name: str
    sizes: dict[str, int]
    batch_size: int
    length: int
    task: str = "causal"
    dtype: torch.dtype = torch.bfloat16
    quantization: str = "none"
    training: dict[str, Any] = field(default_factory=dict)


CONFIGURATIONS = [
    Configuration("134M, QLoRA, 4 x 256", LLAMA_134M, 4, 256, quantization="nf4"),
    Configuration(
        "134M, QLoRA, 4 x 256, checkpointing",
        LLAMA_134M,
        4,
        256,
        quantization="nf4",
        training={"gradient_checkpointing": True},
    ),
    Configuration(
        "134M, QLoRA, checkpointing, memory returned",
        LLAMA_134M,
        4,
        256,
        quantization="nf4",
        training={"gradient_checkpointing": True, "return_freed_memory": True},
    ),
    Configuration("134M, LoRA in bf16, 4 x 256", LLAMA_134M, 4, 256),
    Configuration("8M, LoRA in f32, 16 x 128", NOVELS_8M, 16, 128, dtype=torch.float32),
    Configuration("BERT 22M, classification in f32, 16 x 256", MINILM, 16, 256, "classification", torch.float32),
]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", default="", help="configurations whose name holds this text")
    arguments.add_argument("--keep", help="work in this folder and leave it")
    given = arguments.parse_args()
    chosen = [one for one in CONFIGURATIONS if given.only in one.name]
    worst = 0.0
    print(f"{'configuration':<44}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    for number, configuration in enumerate(chosen):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(given.keep or temporary) / str(number)
            predicted, measured = compare(configuration, folder)
        worst = max(worst, abs(predicted / measured - 1))
        row = f"{predicted / 2**20:>8.0f} MiB{measured / 2**20:>8.0f} MiB{predicted / measured:>8.3f}"
        print(f"{configuration.name:<44}{row}", flush=True)
    print(f"largest deviation {worst:.1%}; allowed {WITHIN:.0%}")
    return int(worst > WITHIN)


def compare(configuration: Configuration, folder: Path) -> tuple[int, int]:
    """Predicted and measured peak in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(configuration, folder / "model")
    write_data(configuration, folder / "train.jsonl")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(configuration, folder)))
    measured = peak_of([sys.executable, "-c", LORASMITH, "train", str(recipe)], folder / "log.txt")
    return json.loads((folder / "run" / "plan.json").read_text())["total"], measured


def peak_of(command: list[str], log: Path) -> int:
    """Highest resident memory of command in bytes; not wait4's, which counts this process's own at the fork."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        resident = Resident(process.pid)
        while process.poll() is None:
            resident.sample()
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return resident.peak


def write_model(configuration: Configuration, folder: Path) -> None:
    torch.manual_seed(0)
    if configuration.task == "causal":
        model = LlamaForCausalLM(LlamaConfig(**configuration.sizes))
    else:
        model = BertForSequenceClassification(BertConfig(**configuration.sizes))
    model.to(configuration.dtype).save_pretrained(folder)
    vocabulary = {f"w{number}": number for number in range(2000)} | {"<pad>": 2000, "<eos>": 2001}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    FastTokenizer(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def write_data(configuration: Configuration, path: Path) -> None:
    choose = random.Random(0)
    with path.open("w") as file:
        for number in range(STEPS * configuration.batch_size):
            # one short of the length, for the end token that the data package may add
            text = " ".join(f"w{choose.randrange(2000)}" for _ in range(configuration.length - 1))
            label = {} if configuration.task == "causal" else {"label": number % 2}
            file.write(json.dumps({"text": text, **label}) + "\n")


def recipe_of(configuration: Configuration, folder: Path) -> dict[str, Any]:
    return {
        "task": configuration.task,
        "model": str(folder / "model"),
        "quantization": configuration.quantization,
        "method": {"name": "lora", "r": 8, "target_modules": "all-linear"},
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation_fraction": 0,
            "max_length": configuration.length,
            "packing": configuration.task == "causal",
        },
        "training": {"max_steps": STEPS, "batch_size": configuration.batch_size, **configuration.training},
        "evaluation": {"samples": 0},
        "device": "cpu",
        "output": str(folder / "run"),
    }


if __name__ == "__main__":
    sys.exit(main())
