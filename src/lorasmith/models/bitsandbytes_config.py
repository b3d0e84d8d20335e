"""transformers' BitsAndBytesConfig, field for field, for our layers."""

from typing import Any

import torch

from lorasmith.errors import FormatError
from lorasmith.models.quantization_config import QuantizationConfig, torch_dtype


class BitsAndBytesConfig(QuantizationConfig):
    """`from_pretrained(..., quantization_config=BitsAndBytesConfig(load_in_4bit=True, ...))` without bitsandbytes.

    The fields and defaults are those of transformers' class of this name (5.23), and the stored bytes are the same.
    Two of them mean nothing here: bnb_4bit_quant_storage (storage is always bytes) and
    llm_int8_enable_fp32_cpu_offload. bnb_4bit_compute_dtype left out means the input's type, not float32.
    What is saved is a QuantizationConfig.

    Raises FormatError where neither or both of load_in_4bit and load_in_8bit are asked for, for an unknown type, and
    for llm_int8_has_fp16_weight, which keeps the weights in 16 bits.
    """

    def __init__(
        self,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: list[str] | None = None,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False,
        bnb_4bit_compute_dtype: torch.dtype | str | None = None,
        bnb_4bit_quant_type: str = "fp4",
        bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: torch.dtype | str | None = None,
        **ignored: Any,
    ) -> None:
        if load_in_4bit == load_in_8bit:
            raise FormatError("set exactly one of load_in_4bit=True and load_in_8bit=True")
        if llm_int8_has_fp16_weight:
            raise FormatError("llm_int8_has_fp16_weight=True keeps 16-bit weights; load the model unquantized instead")
        if load_in_4bit and bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise FormatError(f"bnb_4bit_quant_type={bnb_4bit_quant_type!r} is not nf4 or fp4; use nf4, QLoRA's")
        fields: dict[str, Any] = {"skip_modules": llm_int8_skip_modules, "compute_dtype": bnb_4bit_compute_dtype}
        if load_in_8bit:
            super().__init__("int8", int8_threshold=llm_int8_threshold, **fields)
        else:
            super().__init__(bnb_4bit_quant_type, double_quant=bnb_4bit_use_double_quant, **fields)
        self.load_in_8bit = load_in_8bit
        self.load_in_4bit = load_in_4bit
        self.llm_int8_threshold = llm_int8_threshold
        self.llm_int8_skip_modules = llm_int8_skip_modules
        self.llm_int8_enable_fp32_cpu_offload = llm_int8_enable_fp32_cpu_offload
        self.llm_int8_has_fp16_weight = llm_int8_has_fp16_weight
        self.bnb_4bit_compute_dtype = torch_dtype(bnb_4bit_compute_dtype) or torch.float32
        self.bnb_4bit_quant_type = bnb_4bit_quant_type
        self.bnb_4bit_use_double_quant = bnb_4bit_use_double_quant
        self.bnb_4bit_quant_storage = torch_dtype(bnb_4bit_quant_storage) or torch.uint8

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], *arguments: Any, **fields: Any) -> Any:
        """The config of a dictionary: of this class's fields, or of what to_dict saved."""
        if "format" in config_dict:
            return QuantizationConfig.from_dict(config_dict, *arguments, **fields)
        return super().from_dict(config_dict, *arguments, **fields)

    def is_quantizable(self) -> bool:
        return True

    def quantization_method(self) -> str:
        """llm_int8, nf4 or fp4."""
        return "llm_int8" if self.load_in_8bit else self.bnb_4bit_quant_type
