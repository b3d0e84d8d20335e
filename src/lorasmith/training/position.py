"""How far a run has come: everything besides tensors that the next step depends on."""

from dataclasses import asdict, dataclass, field
from typing import Any

from lorasmith.training.loss_scale import LossScale


@dataclass
class Interval:
    """Sums since the last logged line."""

    nll: float = 0.0
    supervised: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Position:
    """Steps done, the best evaluation so far, and evaluations since then.

    loss is of the last step whose loss was finite; loss_scale is float16's, None in other types.
    """

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    poor_evaluations: int = 0
    loss: float | None = None
    interval: Interval = field(default_factory=Interval)
    loss_scale: LossScale | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Position":
        scale = state.get("loss_scale")
        made = {"interval": Interval(**state["interval"]), "loss_scale": None if scale is None else LossScale(**scale)}
        return cls(**(state | made))
