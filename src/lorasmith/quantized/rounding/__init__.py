"""Rounding a weight so that what a layer computes changes least, instead of each number by itself."""

from lorasmith.quantized.rounding.compensate import compensated
from lorasmith.quantized.rounding.moments import Moments

__all__ = ["Moments", "compensated"]
