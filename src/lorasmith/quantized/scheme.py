"""How a weight is stored: the format, its block size, and whether the scales are quantized too."""

from dataclasses import dataclass
from math import ceil, prod

from lorasmith.errors import FormatError
from lorasmith.formats import BLOCKSIZES, NESTED_BLOCKSIZE, Format, formats


@dataclass(frozen=True)
class Scheme:
    """The stored form of a weight.

    blocksize counts the elements that share a scale; double_quant stores the scales in 8 bits too; zero_points gives
    every block an offset in f32, which takes rows of whole blocks. Row-wise formats (int8) have one scale a row and
    read none of these.

    Raises FormatError for an unknown format, a block size outside 32 to 4096, and zero points or a block size of a
    row-wise format.
    Source: QLoRA, arXiv 2305.14314, section 3; zero points, QA-LoRA, arXiv 2309.14717, section 3.1.
    """

    format: str = "nf4"
    blocksize: int = 64
    double_quant: bool = True
    zero_points: bool = False

    def __post_init__(self) -> None:
        if self.blocksize not in BLOCKSIZES:
            raise FormatError(f"blocksize={self.blocksize} is not one of {BLOCKSIZES}; use 64, the QLoRA default")
        rowwise = self.number_format.layout == "rowwise"
        if rowwise and self.blocksize != type(self).blocksize:
            raise FormatError(
                f"blocksize={self.blocksize} with format {self.format}, which has one scale a row and no blocks; leave "
                "the block size out, or choose nf4, fp4 or int4"
            )
        if self.zero_points and rowwise:
            raise FormatError(f"{self.format} has no blocks to give zero points; use int4, or leave zero_points out")

    @property
    def number_format(self) -> Format:
        """The meaning of the stored codes."""
        return formats[self.format]

    @property
    def bitsandbytes(self) -> str | None:
        """The name that bitsandbytes gives weights stored so, None where it has none."""
        return None if self.zero_points else self.number_format.bitsandbytes

    def storage(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shape of each stored byte tensor of a weight of this shape: weight, scales and, nested, two more; zeros.

        Raises FormatError where zero points meet rows that are no whole blocks.
        """
        if self.number_format.layout == "rowwise":
            rows = shape[0]
            return {"weight": (rows, prod(shape[1:])), "scales": (4 * rows,)}
        elements = prod(shape)
        blocks = ceil(elements / self.blocksize)
        sizes: dict[str, tuple[int, ...]] = {"weight": (ceil(elements * self.number_format.bits / 8),)}
        if self.zero_points:
            if prod(shape[1:]) % self.blocksize:
                raise FormatError(
                    f"a row of {prod(shape[1:])} weights is no whole number of blocks of {self.blocksize}, which zero "
                    "points need; use a block size that divides it, or leave this layer dense"
                )
            sizes["zeros"] = (4 * blocks,)
        if not self.double_quant:
            return sizes | {"scales": (4 * blocks,)}
        nested = ceil(blocks / NESTED_BLOCKSIZE)
        return sizes | {"scales": (blocks,), "nested_scales": (4 * nested,), "nested_offset": (4,)}

    def payload_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of codes and scales of a weight of this shape, without file headers and tables."""
        return sum(prod(size) for size in self.storage(shape).values())

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Payload bits for each weight: 4.127 for a large matrix in NF4 with blocks of 64 and double quantization."""
        return 8 * self.payload_bytes(shape) / prod(shape)

    def __str__(self) -> str:
        if self.number_format.layout == "rowwise":
            return f"{self.format}, one scale a row"
        parts = [self.format, f"blocks of {self.blocksize}"]
        parts += ["double quantization"] * self.double_quant + ["zero points"] * self.zero_points
        return ", ".join(parts)
