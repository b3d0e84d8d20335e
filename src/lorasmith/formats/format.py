"""What a number format is, and the table of those we have."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from lorasmith.errors import FormatError
from lorasmith.formats.lasting import lasting
from lorasmith.registry import Registry

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DEFAULT_BLOCKSIZE = 64
NESTED_BLOCKSIZE = 256


@dataclass(frozen=True)
class Format:
    """The meaning of a code of `bits` bits.

    blockwise: flat row-major blocks, value = levels[code] x the block's absmax.
    rowwise: int8 as in LLM.int8() (arXiv 2208.07339), value = code x the row's absmax / 127, and no levels.
    bitsandbytes is the name that library gives the format, None where it has no such format.
    """

    name: str
    bits: int
    layout: Literal["blockwise", "rowwise"]
    levels: tuple[float, ...] | None
    bitsandbytes: str | None

    def codebook(self, device: torch.device | str = "cpu") -> Tensor:
        """The levels, f32 [2**bits], index = bit pattern; one shared tensor a device, not to be written to.

        Raises FormatError for a rowwise format, which has none.
        """
        if self.levels is None:
            raise FormatError(f"format {self.name!r} is {self.layout} and has no codebook; use its integer codes")
        return shared_codebook(self.levels, torch.device(device))


def shared_codebook(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """The one tensor of these levels on device, f32."""
    return _made(levels, device)


@cache
def _made(levels: tuple[float, ...], device: torch.device) -> Tensor:
    with lasting():
        return torch.tensor(levels, dtype=torch.float32, device=device)


formats: Registry[Format] = Registry("format", "lorasmith.formats")
