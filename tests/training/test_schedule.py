"""The schedules are those of transformers' get_scheduler, from which they are not made."""

import pytest
import torch
from transformers import get_scheduler

from lorasmith.training.schedule import factor

THEIRS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize("warmup", [0, 4])
def test_it_is_transformers_schedule_one_warmup_step_ahead(schedule, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(THEIRS[schedule], optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(20):
        if step < warmup:
            # theirs wastes the first step on a rate of 0: step / warmup, ours (step + 1) / warmup
            assert factor(step, schedule, warmup, 20) == (step + 1) / warmup
        else:
            assert factor(step, schedule, warmup, 20) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_run_of_nothing_but_warmup_divides_by_no_zero():
    assert factor(5, "linear", 5, 5) == 1.0
