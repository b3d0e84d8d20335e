"""A real classifier: LoRA on query and value with the head, against the head alone, on IMDb with MiniLM.

    python benchmarks/real_classifier.py [--seeds 3] [--epochs 1]

`minilm-l6-v2` (22.7 million parameters) learns film reviews, positive or negative: 5,000 to train on, 1,500 to test on,
256 tokens each, the same number of epochs and batches of 16 for both, without dropout. Accuracy and macro F1 with 95 %
intervals, a line a seed; then the mean over the seeds. The head's rate is the best of four on seed 0, chosen on the
test reviews (which favours it); LoRA's was not tuned. Where only the head trains, nothing below it changes, and each
review passes through the backbone once and is remembered. Needs the shared folder (LORASMITH_SHARED). Writes
results/real_classifier.json, run by run, and goes on from there; --only runs a part, say beside another process.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from shared import SHARED, require_shared
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import BertModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

import lorasmith
from lorasmith.atomic import write_text
from lorasmith.data import EncodeSettings, Loader, encode, read
from lorasmith.evaluation import evaluate_classifier
from lorasmith.methods import AdapterConfig
from lorasmith.methods.full import FullConfig
from lorasmith.methods.lora import LoraConfig

RESULTS = Path(__file__).with_name("results") / "real_classifier.json"
LENGTH, BATCH = 256, 16
LORA, HEAD = "LoRA on query and value, and the head", "the head alone"
CONFIGS: dict[str, AdapterConfig] = {
    LORA: LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS"),
    HEAD: FullConfig(target_modules=["classifier"], task_type="SEQ_CLS"),
}
RATES: dict[str, list[float]] = {LORA: [1e-3], HEAD: [1e-2, 3e-2, 1e-1, 3e-1]}


class RememberingBert(BertModel):
    """A frozen BERT without dropout that answers for a review that it has seen from memory."""

    seen: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> BaseModelOutputWithPooling:
        if isinstance(input_ids, FakeTensor):  # the memory plan's
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)
        keys = [ids[mask.bool()].numpy().tobytes() for ids, mask in zip(input_ids, attention_mask)]
        new = [row for row, key in enumerate(keys) if key not in self.seen]
        if new:
            pooled = super().forward(input_ids=input_ids[new], attention_mask=attention_mask[new]).pooler_output
            self.seen.update(zip((keys[row] for row in new), pooled))
        pooled = torch.stack([self.seen[key] for key in keys])
        return BaseModelOutputWithPooling(last_hidden_state=pooled[:, None], pooler_output=pooled)


def score(name: str, rate: float, seed: int, epochs: float) -> dict[str, Any]:
    """Test scores of one contestant, rate and seed."""
    loaded = lorasmith.load(
        SHARED / "models" / "minilm-l6-v2", task="classification", num_labels=2, dtype=torch.float32, seed=seed
    )
    for module in loaded.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if name == HEAD:
        loaded.model.bert.__class__ = RememberingBert
    with tempfile.TemporaryDirectory() as folder:
        lorasmith.train(
            loaded.model,
            loaded.tokenizer,
            str(SHARED / "imdb" / "train.jsonl"),
            output=Path(folder) / "run",
            task="classification",
            method=CONFIGS[name],
            max_length=LENGTH,
            epochs=epochs,
            batch_size=BATCH,
            learning_rate=rate,
            warmup=0.06,
            seed=seed,
            dtype="fp32",
            save_every=None,
            validation_fraction=0.0,
            echo=lambda line: None,
        )
    records = list(read(str(SHARED / "imdb" / "test.jsonl")))
    settings = EncodeSettings(task="classification", max_length=LENGTH)
    examples = encode(records, loaded.tokenizer, settings)
    loader = Loader(
        examples,
        BATCH,
        seed=0,
        packing=False,
        max_length=LENGTH,
        padding_free=False,
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
    scores = evaluate_classifier(loaded.model, loader.one_pass())
    return {metric: estimate.to_dict() for metric, estimate in scores.items() if metric in ("accuracy", "f1")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--only", default="", help="contestants and seeds whose 'name, seed N' holds this text")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results file holds already")
    chosen = parser.parse_args()
    require_shared(parser)
    if chosen.fresh:
        RESULTS.unlink(missing_ok=True)
    for seed, name in itertools.product(range(chosen.seeds), CONFIGS):
        if chosen.only in f"{name}, seed {seed}":
            measure(name, seed, chosen.epochs)
    print_table(rows_so_far())


def measure(name: str, seed: int, epochs: float) -> None:
    """Add a contestant's row for a seed to the results, where it is missing; rates are tried on seed 0 alone."""
    who = {"contestant": name, "seed": seed, "epochs": epochs}
    if any(who.items() <= row.items() for row in rows_so_far()):
        return
    first = next((row for row in rows_so_far() if row["contestant"] == name and row["seed"] == 0), None)
    rates = RATES[name] if first is None else [first["rate"]]
    tried = {rate: score(name, rate, seed, epochs) for rate in rates}
    best = max(tried, key=lambda rate: tried[rate]["accuracy"]["value"])
    row = {**who, "rate": best, "tried": {rate: tried[rate]["accuracy"]["value"] for rate in tried}, **tried[best]}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_text(RESULTS, json.dumps({"versions": versions, "rows": [*rows_so_far(), row]}, indent=1) + "\n")


def rows_so_far() -> list[dict[str, Any]]:
    """What the results file holds; another process may add to it meanwhile."""
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []


def print_table(rows: list[dict[str, Any]]) -> None:
    """A line a contestant and seed, then the means."""
    for row in sorted(rows, key=lambda row: (row["seed"], row["contestant"])):
        accuracy, f1 = row["accuracy"], row["f1"]
        print(
            f"seed {row['seed']}, {row['contestant']} (rate {row['rate']:g}): accuracy {accuracy['value']:.3f} "
            f"({accuracy['low']:.3f} to {accuracy['high']:.3f}), F1 {f1['value']:.3f} ({f1['low']:.3f} to "
            f"{f1['high']:.3f})"
        )
    for name in CONFIGS:
        values = [row["accuracy"]["value"] for row in rows if row["contestant"] == name]
        if values:
            print(f"{name}: mean accuracy {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
