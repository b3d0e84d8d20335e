"""Parameters that move during the backward pass, each as soon as its gradient is whole, which is then freed.

So no more than a few gradients are alive at once. It excludes what needs all of them: accumulation, clipping by their
norm, float16's scale, and methods with a part of their own in a step.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from lorasmith.errors import RecipeError
from lorasmith.training.optimizers import Optimizer


@contextmanager
def moved_in_backward(optimizer: Optimizer, learning_rate: float) -> Iterator[dict[str, Tensor]]:
    """One step of optimizer, in the backward pass inside the block; yields the norm of each gradient by name."""
    norms: dict[str, Tensor] = {}
    optimizer.begin()
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(_move, optimizer, name, learning_rate, norms))
        for name, parameter in optimizer.parameters.items()
        # LoRA-FA's A does not train
        if parameter.requires_grad
    ]
    try:
        yield norms
    finally:
        for hook in hooks:
            hook.remove()


def _move(optimizer: Optimizer, name: str, learning_rate: float, norms: dict[str, Tensor], parameter: Tensor) -> None:
    assert parameter.grad is not None
    norms[name] = torch.linalg.vector_norm(parameter.grad.detach())
    optimizer.move(name, learning_rate)
    parameter.grad = None


def require_whole_step(dtype: torch.dtype | None, adapters: Iterable[str]) -> None:
    """Raise RecipeError where a step in the backward pass is none that a run in dtype, or a method, can take.

    adapters are those whose methods take part in a step.
    """
    if dtype == torch.float16:
        raise RecipeError(
            "training.step_in_backward=true moves parameters before it is known whether float16 overflowed; set "
            "training.dtype: bf16 or fp32, or step_in_backward: false"
        )
    for adapter in adapters:
        raise RecipeError(
            f"training.step_in_backward=true frees each gradient at once, and the method of adapter {adapter!r} takes "
            "part in a step with all of them (as AdaLoRA does); set training.step_in_backward: false"
        )
