"""Several adapters as one: PEFT's weighted adapters, of a model or of folders."""

from lorasmith.attach.composing.arithmetic import MajoritySign
from lorasmith.attach.composing.compose import add_weighted, compose
from lorasmith.attach.composing.composition import COMBINATION_TYPES, Composition, Part
from lorasmith.attach.composing.lora import distance_from_sum

__all__ = ["COMBINATION_TYPES", "Composition", "MajoritySign", "Part", "add_weighted", "compose", "distance_from_sum"]
