"""The quickstart over several seeds, beside what must not solve its task.

    python benchmarks/quickstart_seeds.py [--seeds 3] [--steps 200]

Exact match on the 500 test questions, about people and things that no training story names: the best constant answer,
the base in NF4 as it is, the base with nothing but its head trained (same items, same number of steps, the best of
several learning rates, chosen on the test items in its favour), and QLoRA. To show what the base knows: the same
questions put as a statement of its own corpus to complete, one token compared. Writes results/quickstart_seeds.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import lorasmith
from lorasmith.atomic import write_text
from lorasmith.data import EncodeSettings, Loader, encode
from lorasmith.models.load import LoadedModel, load
from lorasmith.models.packed_attention import enable_packing
from lorasmith.quickstart.run import (
    BASE,
    BATCH_SIZE,
    SCHEME,
    TRAIN_ITEMS,
    VALIDATION_ITEMS,
    Options,
    make_recipe,
    quickstart,
)
from lorasmith.quickstart.score import answers, exact_match
from lorasmith.quickstart.task import Item, Task, make_task
from lorasmith.quickstart.world import make_world
from lorasmith.training import RunFolder, TrainingSettings, run

RESULTS = Path(__file__).with_name("results") / "quickstart_seeds.json"
HEAD_RATES = (1e-3, 4e-3, 2e-2)


def base() -> LoadedModel:
    """A fresh base in NF4."""
    return load(BASE, scheme=SCHEME, dtype=torch.float32, device="cpu", offline=True)


def head_only(task: Task, settings: TrainingSettings) -> float:
    """Exact match after training the head alone; settings are the quickstart's, but for the learning rate."""
    loaded = base()
    model, tokenizer = loaded.model, loaded.tokenizer
    assert tokenizer is not None
    model.requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(True)
    assert enable_packing(model) is None
    examples = encode([item.record() for item in task.train], tokenizer, EncodeSettings(max_length=64))
    loader = Loader(
        examples,
        BATCH_SIZE,
        seed=settings.seed,
        packing=False,
        max_length=64,
        padding_free=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        run(model, loader, settings, RunFolder(Path(folder) / "run"))
    return exact_match(model, tokenizer, task.test)


def statement(item: Item) -> str:
    """The item's question as a statement of the base's corpus that stops before the answer."""
    story, asked = item.prompt.split("\nQuestion: ")
    return f"{story} {asked.split()[2]} comes from"


def known(task: Task) -> float:
    """Share of the test items that the base answers when they are put as statements."""
    loaded = base()
    assert loaded.tokenizer is not None
    said = answers(loaded.model, loaded.tokenizer, [statement(item) for item in task.test])
    right = [text.startswith(item.completion.strip()) for text, item in zip(said, task.test)]
    return sum(right) / len(right)


def row(seed: int, steps: int) -> dict[str, Any]:
    """All figures of one seed."""
    task = make_task(make_world(), TRAIN_ITEMS, VALIDATION_ITEMS, seed)
    with tempfile.TemporaryDirectory() as folder:
        options = Options(seed, steps, Path(folder) / "run", device="cpu")
        result = quickstart(options, lambda line: None)
        recipe = make_recipe(options, Path(folder) / "run-data")
    heads = {}
    for rate in HEAD_RATES:
        section = recipe.training.model_copy(update={"learning_rate": rate})
        heads[f"{rate:g}"] = head_only(task, section.settings(seed))
    return {
        "seed": seed,
        "steps": steps,
        "constant": result.majority,
        "base": result.before,
        "head_only": max(heads.values()),
        "head_only_by_rate": heads,
        "qlora": result.after,
        "base_on_statements": known(task),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Options.steps)
    given = parser.parse_args()
    rows = []
    for seed in range(given.seeds):
        rows.append(row(seed, given.steps))
        print(
            "  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items() if isinstance(value, float)), flush=True
        )
    versions = {"torch": torch.__version__, "lorasmith": lorasmith.__version__}
    write_text(RESULTS, json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
