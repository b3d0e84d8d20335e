"""The weight of a layer as methods see it, however it is stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorasmith.methods import dense_weight
from lorasmith.ops import DenseProduct
from lorasmith.quantized import QuantizedLinear, QuantizedWeight


@dataclass(frozen=True)
class StoredWeight:
    """The weight of a layer, dense, quantized or a Conv1D's, for whom its storage is of no concern."""

    layer: Any

    def __call__(self) -> Tensor:
        """The dense weight [out, in, ...] in the type that it was loaded in."""
        return dense_weight(self.layer)

    @torch.no_grad()
    def times(self, rows: Tensor) -> Tensor:
        """rows W^T of rows [R, in] -> [R, out] in the type of rows, without gradients."""
        if isinstance(self.layer, QuantizedLinear) and not self.layer.rowwise:
            return self.layer.product().forward(rows, None)
        # the product in int8 would round rows to 8 bits
        return DenseProduct(dense_weight(self.layer)).forward(rows, None)

    def stored(self) -> list[Tensor]:
        """The tensors that hold the weight."""
        layer = self.layer
        return list(layer.stored.values()) if isinstance(layer, QuantizedWeight) else [layer.weight]

    @property
    def bias(self) -> Tensor | None:
        """The bias [out]."""
        return self.layer._parameters.get("bias")
