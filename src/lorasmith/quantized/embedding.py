"""An embedding whose table is stored quantized."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.ops import dequantize_blockwise, dequantize_rowwise
from lorasmith.quantized.scheme import Scheme
from lorasmith.quantized.weight import QuantizedWeight


class QuantizedEmbedding(QuantizedWeight):
    """Rows of a frozen table [num_embeddings, embedding_dim]; only the rows that are looked up are dequantized."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        scheme: Scheme,
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((num_embeddings, embedding_dim), scheme, dtype, None, device)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx

    @classmethod
    def from_float(cls, embedding: nn.Embedding, scheme: Scheme, name: str = "weight") -> Self:
        """The quantized twin of a dense embedding; name stands in errors."""
        weight = embedding.weight.detach()
        rows, width = weight.shape
        twin = cls(rows, width, scheme, padding_idx=embedding.padding_idx, dtype=weight.dtype, device="meta")
        twin.quantize_(weight, name)
        return twin

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] of row numbers -> rows [..., embedding_dim] in the type of the source."""
        if not self.rowwise and self.embedding_dim % self.scheme.blocksize:
            # blocks run across rows, so single rows cannot be cut out
            return functional.embedding(ids, self.dequantize())
        codes, scales = self._rows(ids.reshape(-1))
        shape = (ids.numel(), self.embedding_dim)
        zeros = self.zero_values()
        # rounded once, after the offsets
        wide = self.dtype if zeros is None else torch.float32
        if self.rowwise:
            rows = dequantize_rowwise(codes.view(torch.int8), scales, self.dtype)
        else:
            rows = dequantize_blockwise(codes.reshape(-1), scales, self.codebook(), self.scheme.blocksize, shape, wide)
        if zeros is not None:
            offsets = zeros[ids.reshape(-1)].repeat_interleave(self.scheme.blocksize, dim=1)
            rows = (rows + offsets).to(self.dtype)
        return rows.reshape(*ids.shape, self.embedding_dim)

    def _rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        # codes uint8 [ids, bytes a row], scales f32 [ids * scales a row]
        # index_select refuses negative numbers, as an embedding does, where an index would count from the end
        codes = self.weight.view(self.num_embeddings, -1).index_select(0, ids)
        scales, nested = self.scale_values()
        if nested is None:
            return codes, scales.view(self.num_embeddings, -1).index_select(0, ids).reshape(-1)
        per_row = self.embedding_dim // self.scheme.blocksize
        blocks = (ids[:, None] * per_row + torch.arange(per_row, device=ids.device)).reshape(-1)
        values = nested.codebook[scales[blocks].long()] * nested.scales[blocks // nested.blocksize] + nested.offset
        return codes, values

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.describe()}"
