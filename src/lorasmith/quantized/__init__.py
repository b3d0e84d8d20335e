"""Frozen layers stored in a number format."""

from lorasmith.quantized.conv import QuantizedConv
from lorasmith.quantized.count import ParameterCount, count_parameters, stored_bytes
from lorasmith.quantized.embedding import QuantizedEmbedding
from lorasmith.quantized.linear import QuantizedLinear
from lorasmith.quantized.rounding import Moments, compensated
from lorasmith.quantized.scheme import Scheme
from lorasmith.quantized.twin import dense_module, quantize_module, requantized
from lorasmith.quantized.weight import QuantizedWeight

__all__ = [
    "Moments",
    "ParameterCount",
    "QuantizedConv",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedWeight",
    "Scheme",
    "compensated",
    "count_parameters",
    "dense_module",
    "quantize_module",
    "requantized",
    "stored_bytes",
]
