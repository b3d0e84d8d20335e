"""What a method does during training beside being trained: a penalty, an act after each step, a state of its own."""

from collections.abc import Mapping

from torch import Tensor


class TrainingPart:
    """A method's own part in the training of one adapter. Subclasses override what they do; the rest is nothing.

    The loop adds the penalty once to the mean loss of a step, calls after_step between the optimizer and the removal
    of the gradients, and keeps the state in its checkpoints, from which a resumed run goes on bit for bit.
    """

    def check(self, total: int) -> None:
        """Raise AttachError where a run of total steps leaves no room for what this does."""

    def penalty(self) -> Tensor | None:
        """A scalar that is added to the mean loss, with gradients; None for nothing."""
        return None

    def after_step(self, step: int, total: int | None) -> None:
        """Act after optimizer step number step of total (None where it is not known), whose gradients are in place."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the trained tensors, by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
