"""The contract of a start: how the factors A [R, I] and B [O, R] of a new LoRA begin.

R rank, O out_features, I in_features; s is the scaling, so that the update is s B A.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lorasmith.errors import AttachError, nearest
from lorasmith.methods.site import BaseWeight
from lorasmith.registry import Registry

Factors = tuple[Tensor, Tensor]

# PEFT has these too
_NOT_BUILT = ("corda", "lora_ga", "mica")


class Start:
    """A Kaiming-uniform and B zero, the start of LoRA's paper; subclasses say what they do otherwise.

    value is `init_lora_weights` in small letters, quantization is `loftq_config`.
    """

    # The factors come from the weight, by from_base.
    from_weight: bool = False
    # The factors are a part of the base's weight; so s B A is taken off the base where they begin.
    shifts: bool = False
    # The update is not zero where it begins.
    wanders: bool = False
    # Beside embeddings every start is the plain one, as in PEFT.
    serves_convolutions: bool = True

    def __init__(self, value: str, quantization: Mapping[str, Any]) -> None:
        name = type(self).__name__
        if "_niter_" in value:
            raise AttachError(f"init_lora_weights={value!r}: {name} iterates nothing; leave _niter_ away")
        if quantization:
            raise AttachError(f"loftq_config={dict(quantization)!r} says nothing to the start {name}; leave it away")

    def settings(self) -> dict[str, Any]:
        """What `loftq_config` says with its defaults spelled out."""
        return {}

    def check(self, rank: int, most: int) -> None:
        """Raise AttachError for a rank that the start cannot give; most is the highest that the weight can have."""
        if self.from_weight and rank > most:
            raise AttachError(f"r={rank} is more than a weight with {most} rows or columns has; choose {most} or less")

    def draw_(self, a: Tensor, b: Tensor, rank: int) -> None:
        """Fill A [R, I, ...] and B [O, R, ...] of a site that is being made, without a look at the base.

        Of several experts the factors lie together, those of each of this rank.
        """
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        nn.init.zeros_(b)

    def from_base(self, weight: BaseWeight, rank: int, scaling: float, fresh: bool) -> Factors | None:
        """A and B in f32 from the weight of a linear layer, None where draw_ has said it all.

        For loaded adapters (fresh is False) only what is done to the base counts, or, where the start shifts it, the
        factors that did it; they must come out the same every time.
        """
        return None


starts: Registry[type[Start]] = Registry("init_lora_weights", "lorasmith.methods.inits")


def start_of(value: bool | str, quantization: Mapping[str, Any]) -> Start:
    """The start that `init_lora_weights` and `loftq_config` mean. Raises AttachError, with the choices, for others."""
    written = str(value).lower()
    name = written.partition("_niter_")[0]
    if name not in starts:
        known = ", ".join(["True", "False", *(repr(n) for n in starts.names() if n not in ("true", "false"))])
        reason = "is not built yet" if name in _NOT_BUILT else "is unknown"
        raise AttachError(
            f"init_lora_weights={value!r} {reason}; choose one of: {known}.{nearest(name, starts.names())}"
        )
    return starts[name](written, quantization)
