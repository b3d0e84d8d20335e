"""A normal with standard deviation 1 / R, which is PEFT's, and B zero. Source: LoRA, arXiv 2106.09685, section 4.1."""

from torch import Tensor, nn

from lorasmith.methods.inits.start import Start, starts


class Gaussian(Start):
    """A Gaussian A."""

    def draw_(self, a: Tensor, b: Tensor, rank: int) -> None:
        nn.init.normal_(a, std=1 / rank)
        nn.init.zeros_(b)


starts.add("gaussian", Gaussian)
