"""Settings that cannot be trained with are refused by name before anything is loaded."""

import pytest

from lorasmith.errors import RecipeError
from lorasmith.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 5, "epochs": 1.0}, "max_steps=5 and epochs=1.0; keep one"),
        ({"max_steps": 0}, "training.max_steps=0 must be at least 1"),
        ({"epochs": 0.0}, "training.epochs=0.0 must be above 0"),
        ({"learning_rate": float("nan")}, "training.learning_rate=nan must be above 0"),
        ({"accumulation": 0}, "training.accumulation=0 must be at least 1"),
        ({"warmup": -1}, "training.warmup=-1 must be at least 0"),
        ({"clip": 0.0}, "training.clip=0.0 must be above 0, or null"),
        ({"betas": (0.9, 1.0)}, r"training.betas=\(0.9, 1.0\) must be from 0 to below 1"),
        ({"schedule": "cosin"}, "training.schedule='cosin' must be one of .* Did you mean 'cosine'"),
        ({"dtype": "float16"}, "training.dtype='float16' must be one of auto, bf16, fp16, fp32"),
        ({"offload_checkpoints": True}, "offload_checkpoints=true moves what gradient checkpointing keeps; set grad"),
        ({"patience": 2}, "training.patience=2 needs evaluations; set evaluate_every"),
        ({"save_every": 0}, "training.save_every=0 must be at least 1"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(fields, message):
    with pytest.raises(RecipeError, match=message):
        TrainingSettings(**fields)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"epochs": 2.0}, 20),
        ({"epochs": 2.0, "accumulation": 3}, 7),
        ({"epochs": 0.01}, 1),
        ({}, 10),
    ],
)
def test_steps_of_ten_micro_batches_an_epoch(fields, steps):
    assert TrainingSettings(**fields).total_steps(10) == steps


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.03, 6), (0.035, 7), (0.5, 100), (1, 1), (10, 10)])
def test_warmup_is_a_number_of_steps_or_a_fraction_of_two_hundred(warmup, steps):
    assert TrainingSettings(warmup=warmup).warmup_steps(200) == steps


def test_better_is_lower_unless_said_otherwise_and_nan_is_never():
    settings = TrainingSettings()
    assert not settings.is_better(float("nan"), None)
    assert settings.is_better(1.0, None)
    assert settings.is_better(0.9, 1.0)
    assert not settings.is_better(1.0, 1.0)
    assert TrainingSettings(higher_is_better=True).is_better(0.9, 0.8)
