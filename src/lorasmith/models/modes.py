"""Training and evaluation mode, and which parameters train."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Every module's own mode comes back after the block, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def note_trainability(model: nn.Module) -> Callable[[], None]:
    """What lets the parameters of model train again that train now, and no others of them."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def put_back() -> None:
        for parameter, trains in flags:
            parameter.requires_grad_(trains)

    return put_back
