"""The weight of a layer as methods see it, however it is stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import AttachError
from lorasmith.methods import dense_weight
from lorasmith.ops import DenseProduct
from lorasmith.quantized import QuantizedLinear, QuantizedWeight, Scheme, requantized


# by identity: a compiler looks at it before it has its fields
@dataclass(frozen=True, eq=False)
class StoredWeight:
    """The weight of an adapted layer, dense, quantized or a Conv1D's, for whom its storage is of no concern.

    holder has the layer as its `base_layer` and the sites on it, by adapter, as its `sites`.
    """

    holder: Any

    @property
    def layer(self) -> Any:
        """The layer that holds the weight now."""
        return self.holder.base_layer

    @property
    def scheme(self) -> Scheme | None:
        """How the weight is quantized, None where it is dense."""
        return self.layer.scheme if isinstance(self.layer, QuantizedWeight) else None

    def __call__(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight [out, in, ...] in dtype, by default the type that it was loaded in."""
        return dense_weight(self.layer, dtype)

    def times(self, rows: Tensor) -> Tensor:
        """rows W^T of rows [R, in] -> [R, out] in the type of rows, without gradients."""
        # no decorator: a compiler does not bind a wrapped method to an object that was made under its eyes
        with torch.no_grad():
            if isinstance(self.layer, QuantizedLinear) and not self.layer.rowwise:
                return self.layer.product().forward(rows, None)
            # the product in int8 would round rows to 8 bits
            return DenseProduct(dense_weight(self.layer)).forward(rows, None)

    @torch.no_grad()
    def quantize(self, values: Tensor, scheme: Scheme) -> None:
        """Let a linear layer hold values [out, in] quantized instead of its weight, for good.

        Raises AttachError where another adapter stands on the weight.
        """
        if len(self.holder.sites) > 1:
            names = ", ".join(self.holder.sites)
            raise AttachError(
                f"a start that quantizes the base changes it under all of {names}; attach it alone, first"
            )
        self.holder.base_layer = requantized(self.layer, values, scheme)

    def stored(self) -> list[Tensor]:
        """The tensors that hold the weight."""
        layer = self.layer
        return list(layer.stored.values()) if isinstance(layer, QuantizedWeight) else [layer.weight]

    @property
    def bias(self) -> Tensor | None:
        """The bias [out]."""
        return self.layer._parameters.get("bias")
