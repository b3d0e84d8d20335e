"""True: A Kaiming-uniform, B zero. Source: LoRA, arXiv 2106.09685, section 4.1; A's distribution as in loralib."""

from lorasmith.methods.inits.start import Start, starts


class Kaiming(Start):
    """The plain start."""


starts.add("true", Kaiming)
