"""Can what is kept for the backward pass wait elsewhere?"""

from collections.abc import Iterator

from lorasmith.doctor.finding import Finding, error
from lorasmith.doctor.place.registry import Place, place_checks
from lorasmith.models.offloaded_inputs import offloads


@place_checks.register("offloading")
def offloading(place: Place) -> Iterator[Finding]:
    """Checkpoints leave a GPU for host memory; what is there already has nowhere to go."""
    if place.offloads and not offloads(place.device):
        yield error(
            f"training.offload_checkpoints=true moves them from a CUDA GPU to host memory, and the device is "
            f"{place.device.type}; set it to false"
        )
