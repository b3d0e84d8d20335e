"""False: A and B as torch makes a new layer, so that the update is not zero: for tests, not for training."""

from torch import Tensor

from lorasmith.methods.inits.start import Start, starts


class Random(Start):
    """Nothing is done to the new layers."""

    wanders = True

    def draw_(self, a: Tensor, b: Tensor, rank: int) -> None:
        pass


starts.add("false", Random)
