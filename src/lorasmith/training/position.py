"""How far a run has come: everything besides tensors that the next step depends on."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Interval:
    """Sums since the last logged line."""

    nll: float = 0.0
    supervised: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Position:
    """Steps done, the best evaluation so far, and evaluations since then."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    poor_evaluations: int = 0
    loss: float | None = None
    interval: Interval = field(default_factory=Interval)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Position":
        return cls(**(state | {"interval": Interval(**state["interval"])}))
