"""Quantizing a weight together with a low-rank approximation of what quantizing loses.

W [O, I] is the base's weight, Q what the layer holds once quantized, A [R, I] and B [O, R] the factors, s the scaling.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import AttachError
from lorasmith.formats import formats
from lorasmith.methods.inits.start import Factors, Start
from lorasmith.methods.inits.truncated import balanced_factors, power_iterations
from lorasmith.methods.kinds import require_kinds, with_fields
from lorasmith.methods.site import BaseWeight
from lorasmith.quantized import Scheme

_BITS_FORMAT = {4: "nf4", 8: "int8"}


@dataclass
class LoftQConfig:
    """How a start that quantizes the base does it: PEFT's bits and iterations, and the scheme by its own names.

    format, by default nf4 for 4 bits and int8 for 8, is any that this package has. Raises AttachError for bits without
    a format, for a format of other bits, and for fewer iterations than one.
    """

    loftq_bits: int = 4
    loftq_iter: int = 1
    format: str | None = None
    blocksize: int = 64
    double_quant: bool = False

    def __post_init__(self) -> None:
        require_kinds(self)
        if self.loftq_iter < 1:
            raise AttachError(f"loftq_iter={self.loftq_iter} must be at least 1")
        if self.format is None and self.loftq_bits not in _BITS_FORMAT:
            raise AttachError(f"loftq_bits={self.loftq_bits} is not one of {', '.join(map(str, _BITS_FORMAT))}")
        self.format = self.format or _BITS_FORMAT[self.loftq_bits]
        bits = formats[self.format].bits
        if bits != self.loftq_bits:
            raise AttachError(
                f"loftq_bits={self.loftq_bits}, but {self.format} has {bits} bits; give loftq_bits={bits} with it"
            )

    @property
    def scheme(self) -> Scheme:
        """How the base is stored."""
        assert self.format is not None
        return Scheme(self.format, self.blocksize, self.double_quant)


class Alternating(Start):
    """A start that leaves the base quantized, for good, and lets A and B make up for what it lost."""

    from_weight = True
    serves_convolutions = False

    def __init__(self, value: str, quantization: Mapping[str, Any]) -> None:
        self.value = value
        self.iterations = power_iterations(value)
        self.config = with_fields(LoftQConfig, quantization, "loftq_config")

    def settings(self) -> dict[str, Any]:
        return asdict(self.config)

    def already_there(self, weight: BaseWeight, fresh: bool, repeatable: bool) -> bool:
        """Whether the weight of a loaded adapter's layer is quantized as it must be.

        repeatable says that plain quantizing gives it. Raises AttachError where the layer is quantized otherwise, or is
        one that a new adapter would have to change.
        """
        scheme = weight.scheme
        if scheme is None:
            return False
        if fresh:
            raise AttachError(
                f"init_lora_weights={self.value!r} quantizes the base itself, and it is quantized already: load it "
                "dense (quantization: none in a recipe), or attach a plain LoRA and call replace_lora_weights_loftq "
                "with the folder of the dense weights"
            )
        if repeatable and scheme == self.config.scheme:
            return True
        raise AttachError(
            f"the adapter was trained on a base that its start {self.value!r} quantized, and this one is quantized "
            "already; load the dense base, from which the same is made again (or, if this base was saved from that "
            "very run, set init_lora_weights to true in adapter_config.json)"
        )

    def rest(self, dense: Tensor, weight: BaseWeight, rank: int, scaling: float) -> Factors:
        """The factors of the best rank-R approximation of W - Q."""
        return balanced_factors(dense - weight(torch.float32), rank, scaling, self.iterations)


def without(dense: Tensor, factors: Factors, scaling: float) -> Tensor:
    """W - s B A in f32."""
    a, b = factors
    return dense.addmm(b, a, alpha=-scaling)
