"""How several adapters are to become one: PEFT's combination types by name, and what each asks for."""

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from lorasmith.attach.composing.arithmetic import Arithmetic, MajoritySign, Pruning
from lorasmith.attach.content import AdapterContent
from lorasmith.errors import AttachError, nearest

# what the arithmetic works on: the factors A and B each by itself, side by side, or their product
Ground = Literal["factors", "side by side", "product"]

_TYPES: dict[str, tuple[Ground, Pruning, bool]] = {
    "linear": ("factors", "none", False),
    "cat": ("side by side", "none", False),
    "svd": ("product", "none", False),
    "ties": ("factors", "magnitude", True),
    "ties_svd": ("product", "magnitude", True),
    "dare_linear": ("factors", "random", False),
    "dare_linear_svd": ("product", "random", False),
    "dare_ties": ("factors", "random", True),
    "dare_ties_svd": ("product", "random", True),
    "magnitude_prune": ("factors", "magnitude", False),
    "magnitude_prune_svd": ("product", "magnitude", False),
}
COMBINATION_TYPES = tuple(_TYPES)


class Part(NamedTuple):
    """One adapter of several, by the name that messages call it, and how much of it is wanted."""

    name: str
    content: AdapterContent
    weight: float


@dataclass(frozen=True)
class Composition:
    """One of COMBINATION_TYPES with its settings, in PEFT's words.

    how is None for the method's own: "svd" for LoRA, the weighted sum for IA3. svd_rank is the rank of what a
    decomposition gives (default: the largest of the adapters); svd_clamp a quantile beyond which its factors are cut.
    seed decides what DARE drops. Raises AttachError for an unknown type and for impossible settings.
    """

    how: str | None = None
    svd_rank: int | None = None
    svd_clamp: float | None = None
    svd_driver: str | None = None
    density: float | None = None
    majority_sign_method: MajoritySign = "total"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.how is not None and self.how not in _TYPES:
            known = ", ".join(COMBINATION_TYPES)
            raise AttachError(f"combination_type={self.how!r} is not one of {known}.{nearest(self.how, _TYPES)}")
        if self.svd_rank is not None and self.svd_rank < 1:
            raise AttachError(f"svd_rank={self.svd_rank} must be at least 1")
        if self.svd_clamp is not None and not 0 < self.svd_clamp <= 1:
            raise AttachError(f"svd_clamp={self.svd_clamp} is a quantile and must lie in (0, 1]")
        if not 0 <= self.seed < 2**63:
            raise AttachError(f"seed={self.seed} must be at least 0 and below 2^63")
        self.arithmetic  # noqa: B018 (its own checks, before anything is read)

    @property
    def ground(self) -> Ground:
        """What the arithmetic works on, of LoRA."""
        return _TYPES[self.how or "svd"][0]

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """What is done with the tensors."""
        _, pruning, elects = _TYPES[self.how or "svd"]
        return Arithmetic(pruning, elects, self.density, self.majority_sign_method)

    def generator(self, path: str) -> torch.Generator:
        """The stream of random numbers for the module at path: its own, so that no other module moves it."""
        return torch.Generator().manual_seed(self.seed ^ zlib.crc32(path.encode()))


def checked(parts: list[Part]) -> list[Part]:
    """parts, all of one method and one base. Raises AttachError for none, two methods, or two bases."""
    if not parts:
        raise AttachError("no adapter was named; name at least one to combine")
    for field in ("peft_type", "base_model_name_or_path"):
        found = {part.name: getattr(part.content.config, field) for part in parts}
        if len({value for value in found.values() if value is not None}) > 1:
            listed = ", ".join(f"{name}: {value}" for name, value in found.items())
            raise AttachError(f"adapters of different {field} have no sum ({listed})")
    return parts
