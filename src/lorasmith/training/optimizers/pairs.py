"""LoRA's factors among the tensors that train, for optimizers that treat A and B differently."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from lorasmith.attach import adapters_of
from lorasmith.methods import FactorPair
from lorasmith.training.loss import base_model

Pairs = Mapping[str, FactorPair]


def factor_pairs(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, FactorPair]:
    """The pairs whose B is one of parameters, by its name there."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {names[id(pair.b)]: pair for pair in _all_pairs(model) if id(pair.b) in names}


@contextmanager
def frozen_inputs(model: nn.Module, frozen: bool) -> Iterator[None]:
    """While the block lasts no A of a pair trains, if frozen: its gradient and the layer's input need not be kept."""
    held = [pair.a for pair in _all_pairs(model) if frozen and pair.a.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def _all_pairs(model: nn.Module) -> list[FactorPair]:
    book = adapters_of(base_model(model))
    return [pair for name in book.configs for _, site in book.sites(name) for pair in site.factor_pairs()]
