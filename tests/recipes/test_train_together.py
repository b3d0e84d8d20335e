import json

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from lorasmith.attach import adapters_of
from lorasmith.errors import RecipeError
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.load import load
from lorasmith.quantized import Scheme
from lorasmith.recipes.train import train
from lorasmith.recipes.train_together import train_together

SMALL = {"batch_size": 2, "max_length": 32, "samples": 0}


def quiet(line):
    """Drops what a job tells its user."""


@pytest.fixture
def jobs(stories):
    records = [json.loads(line) for line in stories.read_text().splitlines()]
    lora = LoraConfig(r=3, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    return {
        "early": SMALL | {"data": records[::2], "max_steps": 2, "learning_rate": 1e-2, "seed": 1},
        "late": SMALL | {"data": records[1::2], "max_steps": 4, "learning_rate": 3e-3, "method": lora, "clip": 0.5},
    }


def test_each_run_folder_is_that_of_a_run_alone(llama, jobs, tmp_path):
    loaded = load(llama, scheme=Scheme())
    finished = train_together(loaded.model, loaded.tokenizer, jobs, output=tmp_path / "both", echo=quiet)
    assert adapters_of(loaded.model).active == list(jobs)
    for name, job in jobs.items():
        alone = load(llama, scheme=Scheme())
        own = train(alone.model, alone.tokenizer, output=tmp_path / name, echo=quiet, **job)
        together = finished[name]
        assert (together.folder, together.training.steps) == (tmp_path / "both" / name, job["max_steps"])
        assert together.training.loss == pytest.approx(own.training.loss, rel=1e-4)
        ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (together, own))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            # Adam's steps are gradients over their own size, so that it carries on the order of f32 sums in full
            assert_close(value, theirs[key], atol=5e-4, rtol=1e-3)
        for file in ("recipe.yaml", "report.html", "summary.json", "metrics.jsonl", "evaluation.json"):
            assert (together.folder / file).is_file()


def test_a_job_without_data_and_no_job_at_all_are_refused(llama, jobs, tmp_path):
    loaded = load(llama)
    with pytest.raises(RecipeError, match="'late' has no data"):
        train_together(loaded.model, loaded.tokenizer, {"late": {}}, output=tmp_path, echo=quiet)
    with pytest.raises(RecipeError, match="at least one adapter"):
        train_together(loaded.model, loaded.tokenizer, {}, output=tmp_path, echo=quiet)
