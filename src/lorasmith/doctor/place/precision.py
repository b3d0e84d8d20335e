"""Does the device compute well in the type asked for?"""

from collections.abc import Iterator

import torch

from lorasmith.doctor.finding import Finding, warning
from lorasmith.doctor.place.registry import Place, place_checks
from lorasmith.ops.precision import bfloat16_instructions


@place_checks.register("precision")
def precision(place: Place) -> Iterator[Finding]:
    """A type that the device does not compute well in is warned of, and float16 where bfloat16 would serve."""
    if place.dtype is torch.float16 and place.device.type == "cpu":
        yield warning("float16 is slow on a CPU, and steps are lost to overflows; set training.dtype=fp32")
    if place.dtype is not torch.bfloat16:
        return
    if place.device.type == "cpu" and not bfloat16_instructions():
        yield warning(
            "this processor has no bf16 instructions: layers that are quantized or adapted are multiplied in f32, all "
            "other linear layers are slow; adapt all linear layers, or set training.dtype=fp32"
        )
    if place.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield warning(f"{torch.cuda.get_device_name()} emulates bf16, which is slow; set training.dtype=fp16")
