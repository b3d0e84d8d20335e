"""State in CUDA's unified memory: on the GPU while it has room, on the host when activations need the room.

Source: arXiv 2305.14314, section 3, "paged optimizers".
"""

import os
import re
from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor

from lorasmith.errors import DeviceError, RecipeError
from lorasmith.training.optimizers.placement import Placement
from lorasmith.training.optimizers.unified_memory import Memory, UnifiedMemory

LIMIT = "LORASMITH_PAGED_LIMIT"
"""The variable in which a machine's owner says how much of it one run may page: "8GB", "512MiB", "0", bytes."""

ALIGNMENT = 256
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Paged(Placement):
    """Kept tensors in unified memory, which the driver moves out when the GPU has no room and in when they are used.

    They are not of torch's allocator. All of a slot lie in one piece, and are brought in while another update runs.
    """

    pages = True

    def __init__(self, memory_of: Callable[[torch.device], Memory] = UnifiedMemory) -> None:
        self._memory_of = memory_of
        self._memory: Memory | None = None
        self._expected: set[int] = set()
        self.size = 0

    def check(self, device: torch.device, kept: Iterable[dict[str, Tensor]]) -> None:
        """Raises DeviceError for a device without unified memory, RecipeError where kept is beyond the limit."""
        if device.type != "cuda" or torch.version.hip:
            raise DeviceError(
                f"paged optimizers keep their state in CUDA's unified memory, which device={device.type} does not "
                "have; take training.optimizer: adamw or adamw8bit"
            )
        self._require(sum(_span(each) for each in kept))

    def place(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        size = _span(kept)
        self._require(self.size + size)
        if self._memory is None:
            self._memory = self._memory_of(next(iter(kept.values())).device)
        whole, self.size = self._memory.allocate(size), self.size + size
        return {part: _laid(whole, offset, kept[part]) for part, offset in zip(kept, _offsets(kept), strict=False)}

    def expect(self, kept: dict[str, Tensor]) -> None:
        self._prefetch(kept)
        self._expected.add(_beginning(kept))

    def fetch(self, kept: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        if _beginning(kept) not in self._expected:
            self._prefetch(kept)
        self._expected.discard(_beginning(kept))
        return kept

    def put_back_(self, kept: dict[str, Tensor], fetched: dict[str, Tensor]) -> None:
        # it lies there already
        return

    def _prefetch(self, kept: dict[str, Tensor]) -> None:
        assert self._memory is not None
        self._memory.prefetch(_beginning(kept), _span(kept))

    def _require(self, size: int) -> None:
        limit = paged_limit()
        if limit is not None and size > limit:
            raise RecipeError(
                f"the optimizer's state is {size:,} bytes of paged memory, and {LIMIT}={os.environ[LIMIT]} allows "
                f"{limit:,}; train fewer parameters (a lower rank, fewer modules), take training.optimizer: "
                "paged_adamw8bit or one that is not paged, or ask the machine's owner for more"
            )


def paged_limit() -> int | None:
    """The bytes that one run may page by LORASMITH_PAGED_LIMIT; None where it is not set. RecipeError for no size."""
    said = os.environ.get(LIMIT, "").strip()
    if not said:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", said)
    if found is None or found[2].upper() not in _UNITS:
        raise RecipeError(f"{LIMIT}={said} is no size; write bytes, or a number with MB, GB, MiB or GiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _aligned(tensor: Tensor) -> int:
    size = tensor.numel() * tensor.element_size()
    return -(-size // ALIGNMENT) * ALIGNMENT


def _offsets(kept: dict[str, Tensor]) -> list[int]:
    """Where each part begins, and the end of all."""
    return list(accumulate(map(_aligned, kept.values()), initial=0))


def _span(kept: dict[str, Tensor]) -> int:
    return _offsets(kept)[-1]


def _beginning(kept: dict[str, Tensor]) -> int:
    """The address of the piece that kept tensors lie in."""
    return next(iter(kept.values())).data_ptr()


def _laid(whole: Tensor, offset: int, tensor: Tensor) -> Tensor:
    """A copy of tensor, at offset in whole."""
    size = tensor.numel() * tensor.element_size()
    there = whole[offset : offset + size].view(tensor.dtype).view(tensor.shape)
    return there.copy_(tensor)
