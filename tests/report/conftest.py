"""A run folder as a finished run leaves it."""

import json
import math
from pathlib import Path

import pytest


def estimate(value, reach, n=412):
    return {"value": value, "low": value - reach, "high": value + reach, "n": n}


@pytest.fixture
def run_folder(tmp_path) -> Path:
    folder = tmp_path / "novels-lora"
    folder.mkdir()
    lines = [
        {
            "step": step,
            "loss": 3.5 + math.exp(-step / 20),
            "lr": 2e-4 * (1 - step / 60),
            "grad_norm": 0.7,
            "tokens_per_second": 1650.0,
            "memory_bytes": 7e8,
            "memory_peak_bytes": 8.5e8,
        }
        for step in range(1, 61)
    ] + [{"step": 60, "eval_loss": 3.6, "eval_accuracy": 0.8}]
    contents = {
        "recipe.yaml": "model:\n  path: models/novels\nmethod:\n  name: lora\n",
        "plan.json": json.dumps({"device": "cpu", "components": {"quantized weights": 4e8, "gradients": 4.6e8}}),
        "metrics.jsonl": "\n".join(json.dumps(line) for line in lines) + "\n",
        "evaluation.json": json.dumps(
            {
                "before": {"loss": estimate(5.242, 0.031)},
                "after": {"loss": estimate(3.563, 0.028)},
                "samples": [{"prompt": "Once", "before": "was <script>alert(1)</script>", "after": "upon & a time"}],
            }
        ),
        "summary.json": json.dumps({"trainable_parameters": 4608, "total_parameters": 32768, "steps": 60}),
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    return folder
