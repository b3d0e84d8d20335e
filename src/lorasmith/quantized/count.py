"""Counting parameters as people mean them: elements of the dense weights, not stored bytes."""

from dataclasses import dataclass

from torch import nn

from lorasmith.quantized.weight import QuantizedWeight


@dataclass(frozen=True)
class ParameterCount:
    """Logical elements of a model, and how many of them train."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable share of the total, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.share:.2%})"


def logical_sizes(model: nn.Module) -> dict[int, int]:
    """Logical elements by the id of each stored parameter; scales count nothing, shared parameters once."""
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    for module in model.modules():
        if isinstance(module, QuantizedWeight):
            sizes |= {id(parameter): 0 for parameter in module.stored.values()}
            sizes[id(module.weight)] = module.logical_numel
    return sizes


def count_parameters(model: nn.Module) -> ParameterCount:
    """Trainable and total logical elements of model."""
    sizes = logical_sizes(model)
    trainable = sum(sizes[id(parameter)] for parameter in model.parameters() if parameter.requires_grad)
    return ParameterCount(trainable, sum(sizes.values()))


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of model as they are held, shared ones once."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
