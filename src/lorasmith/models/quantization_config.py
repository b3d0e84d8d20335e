"""The quantization_config that transformers' from_pretrained takes for our layers."""

from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from lorasmith.errors import FormatError
from lorasmith.quantized import Scheme

METHOD = "lorasmith"


class QuantizationConfig(QuantizationConfigMixin):
    """`AutoModelForCausalLM.from_pretrained(path, quantization_config=QuantizationConfig())` loads our layers.

    format, blocksize, double_quant and zero_points are those of Scheme; skip_modules are names or regular expressions
    of linear layers to leave dense besides the output head, task heads and routers; compute_dtype is the type to
    multiply in (None: the input's); int8_threshold is LLM.int8()'s, for int8 only. A saved config lists in skip_modules
    every linear layer that was left dense.

    Raises FormatError for a format or block size that does not exist.
    """

    def __init__(
        self,
        format: str = "nf4",
        blocksize: int = 64,
        double_quant: bool = True,
        skip_modules: list[str] | None = None,
        compute_dtype: torch.dtype | str | None = None,
        int8_threshold: float = 6.0,
        zero_points: bool = False,
        **unknown: Any,
    ) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            known = "format, blocksize, double_quant, skip_modules, compute_dtype, int8_threshold, zero_points"
            raise FormatError(f"QuantizationConfig has no field {', '.join(unknown)}; it has {known}")
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers' enum cannot be extended
        self.format = format
        self.blocksize = blocksize
        self.double_quant = double_quant
        self.zero_points = zero_points
        self.skip_modules = None if skip_modules is None else list(skip_modules)
        self.compute_dtype = torch_dtype(compute_dtype)
        self.int8_threshold = float(int8_threshold)
        _ = self.scheme

    @classmethod
    def from_scheme(cls, scheme: Scheme, **fields: Any) -> "QuantizationConfig":
        """The config that stores in scheme; fields are the remaining arguments."""
        return cls(scheme.format, scheme.blocksize, scheme.double_quant, zero_points=scheme.zero_points, **fields)

    @property
    def scheme(self) -> Scheme:
        """The stored form of the quantized weights."""
        return Scheme(self.format, self.blocksize, self.double_quant, self.zero_points)

    def to_dict(self) -> dict[str, Any]:
        """What stands in config.json; only our own fields, so that it always leads back to our layers."""
        return {
            "quant_method": METHOD,
            "format": self.format,
            "blocksize": self.blocksize,
            "double_quant": self.double_quant,
            "zero_points": self.zero_points,
            "skip_modules": self.skip_modules,
            "compute_dtype": None if self.compute_dtype is None else str(self.compute_dtype).removeprefix("torch."),
            "int8_threshold": self.int8_threshold,
        }


def torch_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """A torch type given by itself, by name or not at all; FormatError for a name that torch does not have."""
    if value is None or isinstance(value, torch.dtype):
        return value
    dtype = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"{value!r} is not a torch type; use bfloat16, float16 or float32")
    return dtype
