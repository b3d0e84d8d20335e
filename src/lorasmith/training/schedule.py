"""The learning rate as a function of the step alone, so that a resumed run needs no state for it."""

import math

from lorasmith.training.settings import Schedule


def factor(step: int, schedule: Schedule, warmup_steps: int, total_steps: int) -> float:
    """What the peak learning rate is multiplied by at step (the first is 0).

    It rises linearly over warmup_steps, from 1 / warmup_steps to 1, and then stays, falls linearly, or falls as half a
    cosine, so that it would be 0 at total_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
