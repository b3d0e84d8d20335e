"""What a model did on each example: all that a metric may read."""

from dataclasses import dataclass

import numpy as np

from lorasmith.evaluation.estimate import FloatArray

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Predicted:
    """Next-token prediction: of each example the summed negative log likelihood in nats, and its scored tokens."""

    nll: FloatArray
    tokens: FloatArray

    def __len__(self) -> int:
        return len(self.nll)


@dataclass(frozen=True)
class Classified:
    """Classification: of each example its class, the class that the model chose, and the nll of the true one."""

    target: IntArray
    chosen: IntArray
    nll: FloatArray
    classes: int

    def __len__(self) -> int:
        return len(self.target)


Outcomes = Predicted | Classified
