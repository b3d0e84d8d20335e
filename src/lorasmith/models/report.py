"""What a loaded model holds: what is quantized, what stays dense, and its share."""

import logging
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorasmith.models.families import ROUTERS
from lorasmith.models.placement import dense_reasons
from lorasmith.quantized import QuantizedWeight, stored_bytes

logger = logging.getLogger(__name__)

# a dense share above this is worth a warning: most of the memory that quantizing promises is then not saved
LARGE_SHARE = 0.2
_SHOWN = 8


@dataclass(frozen=True)
class LoadReport:
    """Parameters of a model by where they are, counted as elements of the dense weights.

    quantized and dense map module names to elements, reasons says why a dense module is dense, initialised lists
    parameters that the checkpoint lacked, ignored tensors that the model has no place for, notes whatever else was
    decided on loading. bytes is what the model holds in memory.
    """

    quantized: dict[str, int]
    dense: dict[str, int]
    reasons: dict[str, str]
    bytes: int
    scheme: str | None = None
    initialised: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """Elements of the whole model."""
        return sum(self.quantized.values()) + sum(self.dense.values())

    @property
    def dense_share(self) -> float:
        """Share of the elements that is not quantized, 0 to 1."""
        return sum(self.dense.values()) / self.total if self.total else 0.0

    def by_reason(self) -> dict[str, int]:
        """Dense elements by reason, largest first."""
        sums: dict[str, int] = {}
        for name, count in self.dense.items():
            sums[self.reasons[name]] = sums.get(self.reasons[name], 0) + count
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def lines(self) -> list[str]:
        """The report for people, a line each."""
        lines = [f"{self.total:,} parameters, {self.bytes / 2**20:,.1f} MiB in memory"]
        if self.quantized:
            count = sum(self.quantized.values())
            lines.append(f"quantized ({self.scheme}): {len(self.quantized)} layers, {count:,} parameters")
            lines.append(f"not quantized: {self.dense_share:.1%} of the parameters")
            for reason, dense in self.by_reason().items():
                lines.append(f"  {reason}: {dense:,} ({dense / self.total:.1%})")
            if self.dense_share > LARGE_SHARE:
                lines.append(f"warning: {self.dense_share:.0%} of the parameters stay dense, and so does their memory")
        if self.initialised:
            lines.append(f"not in the checkpoint, newly initialised: {_some(self.initialised)}")
        if self.ignored:
            lines.append(f"in the checkpoint, not in this model: {_some(self.ignored)}")
        return [*lines, *self.notes]

    def log(self) -> None:
        """Send the report to the log; the warning as one."""
        for line in self.lines():
            logger.log(logging.WARNING if line.startswith("warning") else logging.INFO, line.removeprefix("warning: "))


def report_on(
    model: nn.Module,
    *,
    initialised: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> LoadReport:
    """The report of a model as it stands; shared parameters count once."""
    reasons = dense_reasons(model) if isinstance(model, PreTrainedModel) else {}
    quantized: dict[str, int] = {}
    dense: dict[str, int] = {}
    scheme: str | None = None
    seen: set[int] = set()
    for name, module in model.named_modules():
        fresh = [value for value in module._parameters.values() if value is not None and id(value) not in seen]
        seen |= {id(value) for value in fresh}
        if isinstance(module, QuantizedWeight):
            quantized[name] = module.logical_numel
            scheme = str(module.scheme)
            stored = {id(value) for value in module.stored.values()}
            fresh = [value for value in fresh if id(value) not in stored]
            name = f"{name}.bias"
        if fresh:
            dense[name] = sum(value.numel() for value in fresh)
            reasons.setdefault(name, _reason(name, module))
    return LoadReport(quantized, dense, reasons, stored_bytes(model), scheme, initialised, ignored, notes)


def _reason(name: str, module: nn.Module) -> str:
    if isinstance(module, QuantizedWeight):
        return "biases"
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if name.rpartition(".")[2] in ROUTERS:
        return "routers"
    if "norm" in type(module).__name__.lower():
        return "norms"
    if "expert" in name.lower() or any(value.dim() == 3 for value in module.parameters(recurse=False)):
        return "experts stored as one 3-D parameter"
    return "linear layers" if isinstance(module, nn.Linear | Conv1D) else "other"


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
