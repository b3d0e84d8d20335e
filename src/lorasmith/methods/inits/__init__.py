"""Starts of LoRA's factors, one file each, by PEFT's names for `init_lora_weights`."""

from lorasmith.methods.inits.alternation import LoftQConfig
from lorasmith.methods.inits.eva import EvaConfig, shared_ranks
from lorasmith.methods.inits.incremental_svd import IncrementalSvd
from lorasmith.methods.inits.start import Factors, Start, start_of, starts

__all__ = ["EvaConfig", "Factors", "IncrementalSvd", "LoftQConfig", "Start", "shared_ranks", "start_of", "starts"]
