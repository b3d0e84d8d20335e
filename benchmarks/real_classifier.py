"""A real classifier: LoRA on query and value with the head, against the head alone, on IMDb with MiniLM.

    python benchmarks/real_classifier.py [--seeds 3] [--epochs 1]

`minilm-l6-v2` (22.7 million parameters) learns film reviews, positive or negative: 5,000 to train on, 1,500 to test on,
256 tokens each, the same number of epochs and the same batches for both. Accuracy and macro F1 with 95 % intervals, a
line a seed; then the mean over the seeds. Needs the shared folder (LORASMITH_SHARED). Writes
results/real_classifier.json, run by run, and goes on from there.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import lorasmith
from lorasmith.atomic import write_text
from lorasmith.methods import AdapterConfig
from lorasmith.methods.full import FullConfig
from lorasmith.methods.lora import LoraConfig

SHARED = Path(os.environ.get("LORASMITH_SHARED", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESULTS = Path(__file__).with_name("results") / "real_classifier.json"
# each contestant's learning rate is the better of two tried on one seed
CONTESTANTS: dict[str, tuple[AdapterConfig, float]] = {
    "LoRA on query and value, and the head": (
        LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS"),
        1e-3,
    ),
    "the head alone": (FullConfig(target_modules=["classifier"], task_type="SEQ_CLS"), 1e-2),
}


def score(name: str, seed: int, epochs: float) -> dict[str, Any]:
    """Test scores of one contestant and seed."""
    config, rate = CONTESTANTS[name]
    loaded = lorasmith.load(
        SHARED / "models" / "minilm-l6-v2", task="classification", num_labels=2, dtype=torch.float32, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        finished = lorasmith.train(
            loaded.model,
            loaded.tokenizer,
            str(SHARED / "imdb" / "train.jsonl"),
            validation=str(SHARED / "imdb" / "test.jsonl"),
            output=Path(folder) / "run",
            task="classification",
            method=config,
            max_length=256,
            epochs=epochs,
            batch_size=16,
            learning_rate=rate,
            warmup=0.06,
            seed=seed,
            dtype="bf16",
            samples=0,
            save_every=None,
            echo=lambda line: None,
        )
    assert finished.after is not None
    return {metric: finished.after[metric] for metric in ("accuracy", "f1")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="measure again what the results file holds already")
    parser.add_argument("--epochs", type=float, default=1.0)
    chosen = parser.parse_args()
    if not SHARED.is_dir():
        parser.exit(2, f"error: {SHARED} does not exist; set LORASMITH_SHARED to the folder of models and texts\n")
    rows: list[dict[str, Any]] = []
    if RESULTS.is_file() and not chosen.fresh:
        rows = json.loads(RESULTS.read_text())["rows"]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    for seed, name in itertools.product(range(chosen.seeds), CONTESTANTS):
        who = {"contestant": name, "seed": seed, "epochs": chosen.epochs}
        if any(who.items() <= row.items() for row in rows):
            continue
        rows.append({**who, **score(name, seed, chosen.epochs)})
        write_text(RESULTS, json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    for row in rows:
        accuracy, f1 = row["accuracy"], row["f1"]
        print(
            f"seed {row['seed']}, {row['contestant']}: accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to "
            f"{accuracy['high']:.3f}), F1 {f1['value']:.3f} ({f1['low']:.3f} to {f1['high']:.3f})"
        )
    for name in CONTESTANTS:
        values = [row["accuracy"]["value"] for row in rows if row["contestant"] == name]
        print(f"{name}: mean accuracy {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
