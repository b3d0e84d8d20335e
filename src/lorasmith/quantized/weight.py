"""A frozen weight stored in a number format: the storage that every quantized layer shares."""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.errors import FormatError
from lorasmith.formats import NESTED_BLOCKSIZE, dynamic_map
from lorasmith.formats.format import shared_codebook
from lorasmith.ops import (
    Nested,
    dequantize_blockwise,
    dequantize_rowwise,
    double_quantize,
    quantize_blockwise,
    quantize_rowwise,
)
from lorasmith.ops.autocast import autocast_type
from lorasmith.quantized.scheme import Scheme
from lorasmith.quantized.zero_points import quantize_with_zeros

# A compiler takes the shared tensors as they are, and does not make others on every call of its graph. Said here, since
# to say it imports the compiler, which takes seconds and which the ops do without.
for _shared in (shared_codebook, dynamic_map):
    torch.compiler.assume_constant_result(_shared)


class QuantizedWeight(nn.Module):
    """Base of the quantized layers; subclasses add only their forward.

    The storage is frozen uint8 parameters: FSDP2 shards parameters but not buffers, and `.to(bf16)` rounds every
    floating-point tensor, so float scales are kept as their bytes.

    weight          codes, packed: [bytes], or [rows, columns] bytes of int8 in a row-wise format
    scales          bytes of f32 scales [4 * blocks], or 8-bit codes [blocks] with double quantization
    nested_scales   bytes of the f32 scales of the scales (double quantization), or None
    nested_offset   bytes of the f32 mean that was removed from the scales, or None
    zeros           bytes of the f32 offsets of the blocks, or None

    shape is that of the dense weight, dtype its type before quantizing, compute_dtype the type to multiply in
    (None: the type of the input).
    """

    weight: nn.Parameter
    scales: nn.Parameter
    nested_scales: nn.Parameter | None
    nested_offset: nn.Parameter | None
    zeros: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        scheme: Scheme,
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.scheme = scheme
        self.dtype = dtype
        self.compute_dtype = compute_dtype
        sizes = scheme.storage(self.shape)
        for name in ("weight", "scales", "nested_scales", "nested_offset", "zeros"):
            size = sizes.get(name)
            self.register_parameter(name, None if size is None else _bytes(size, device))

    @property
    def rowwise(self) -> bool:
        """Whether one scale serves a whole row (int8) instead of a block."""
        return self.scheme.number_format.layout == "rowwise"

    @property
    def stored(self) -> dict[str, nn.Parameter]:
        """The byte tensors that hold this weight, by name."""
        names = self.scheme.storage(self.shape)
        return {name: getattr(self, name) for name in names}

    @property
    def logical_numel(self) -> int:
        """Elements of the dense weight."""
        return prod(self.shape)

    def scale_values(self) -> tuple[Tensor, Nested | None]:
        """The scales as the ops take them: f32 [blocks], or codes [blocks] and what they are nested in."""
        if self.nested_scales is None or self.nested_offset is None:
            return self.scales.view(torch.float32), None
        offset, nested_scales = self.nested_offset.view(torch.float32), self.nested_scales.view(torch.float32)
        return self.scales, Nested(nested_scales, offset, dynamic_map(self.weight.device), NESTED_BLOCKSIZE)

    def zero_values(self) -> Tensor | None:
        """The offset of each block by rows, f32 [rows, blocks a row]; None where blocks have none."""
        return None if self.zeros is None else self.zeros.view(torch.float32).view(self.shape[0], -1)

    def codebook(self) -> Tensor:
        """The value of each code, f32 [2 ** bits], on the device of the weight."""
        return self.scheme.number_format.codebook(self.weight.device)

    @torch.no_grad()
    def quantize_(self, weight: Tensor, name: str = "weight") -> None:
        """Store weight [*shape] in this layer's format.

        Raises FormatError, naming the tensor, for a wrong shape, NaN, Inf, or values that the format cannot hold.
        """
        if tuple(weight.shape) != self.shape:
            raise FormatError(f"{name} has shape {tuple(weight.shape)}, the layer expects {self.shape}")
        parts = self._rowwise_parts(weight, name) if self.rowwise else self._blockwise_parts(weight, name)
        for part, value in parts.items():
            value = value.contiguous().reshape(-1).view(torch.uint8).reshape(self.scheme.storage(self.shape)[part])
            setattr(self, part, nn.Parameter(value, requires_grad=False))
        self.dtype = weight.dtype

    def _blockwise_parts(self, weight: Tensor, name: str) -> dict[str, Tensor]:
        codebook = self.scheme.number_format.codebook(weight.device)
        if self.scheme.zero_points:
            return self._offset_parts(weight, codebook, name)
        packed, absmax = quantize_blockwise(weight, codebook, self.scheme.blocksize)
        _refuse_non_finite(absmax, name)
        if not self.scheme.double_quant:
            return {"weight": packed, "scales": absmax}
        codes, nested, offset = double_quantize(absmax)
        return {"weight": packed, "scales": codes, "nested_scales": nested, "nested_offset": offset}

    def _offset_parts(self, weight: Tensor, codebook: Tensor, name: str) -> dict[str, Tensor]:
        blocks = quantize_with_zeros(weight, codebook, self.scheme.blocksize, self.scheme.double_quant)
        _refuse_non_finite(blocks.zeros, name)
        parts = {"weight": blocks.packed, "scales": blocks.scales, "zeros": blocks.zeros}
        if blocks.nested_scales is None or blocks.nested_offset is None:
            return parts
        return parts | {"nested_scales": blocks.nested_scales, "nested_offset": blocks.nested_offset}

    def _rowwise_parts(self, weight: Tensor, name: str) -> dict[str, Tensor]:
        rows = weight.reshape(self.shape[0], -1)
        _refuse_non_finite(rows, name)
        # int8 passes through float16, as in bitsandbytes
        if float(rows.abs().max()) > torch.finfo(torch.float16).max:
            raise FormatError(f"{name} holds values beyond 65504, which int8 cannot keep; use nf4 or leave it dense")
        codes, absmax = quantize_rowwise(rows)
        return {"weight": codes, "scales": absmax}

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight [*shape] that the stored codes stand for, in dtype (default: the source's)."""
        dtype = dtype or self.dtype
        scales, nested = self.scale_values()
        if self.rowwise:
            return dequantize_rowwise(self.weight.view(torch.int8), scales, dtype).reshape(self.shape)
        stored = (self.weight, scales, self.codebook(), self.scheme.blocksize, self.shape)
        zeros = self.zero_values()
        if zeros is None:
            return dequantize_blockwise(*stored, dtype, nested=nested)
        # added in f32, so that the sum is rounded once
        values = dequantize_blockwise(*stored, torch.float32, nested=nested)
        return values.view(*zeros.shape, -1).add_(zeros[..., None]).view(self.shape).to(dtype)

    def working_dtype(self, x: Tensor) -> torch.dtype:
        """The type to multiply in: autocast's, else compute_dtype, else the input's; never float16 on a CPU."""
        dtype = autocast_type(x.device) or self.compute_dtype or x.dtype
        # float16 products run 10 to 1000 times slower than float32 on a CPU
        return torch.float32 if dtype == torch.float16 and x.device.type == "cpu" else dtype

    def describe(self) -> str:
        """The storage in words, for print(model)."""
        return f"{self.scheme}, {self.scheme.bits_per_weight(self.shape):.3f} bits a weight"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        missing = [name for name in self.stored if prefix + name not in state_dict]
        if prefix + "weight" in state_dict and missing:
            raise FormatError(f"{prefix}weight comes without {', '.join(missing)}; the checkpoint is incomplete")
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _bytes(size: tuple[int, ...], device: torch.device | str | None) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size, dtype=torch.uint8, device=device), requires_grad=False)


def _refuse_non_finite(values: Tensor, name: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise FormatError(f"{name} holds NaN or Inf and cannot be quantized; repair or re-download the checkpoint")
