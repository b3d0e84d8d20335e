"""loralib's state dicts, which hold `<module>.lora_A`, `<module>.lora_B` and whatever else was trained.

A Linear has A [r, in] and B [out, r]. A MergedLinear holds several projections of equal width in one weight, of which
some are adapted: A [n r, in] and B [n width, r] for n of them, each with its own rows of A and of B. As one update that
is B with its blocks on a diagonal, of rank n r. The scaling, alpha / r, is not in the file. Source: loralib 0.1,
layers.py of github.com/microsoft/LoRA.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorasmith.attach.adapters import KEY_PREFIX
from lorasmith.attach.content import AdapterContent
from lorasmith.attach.updates import rank_pattern
from lorasmith.errors import AdapterError, nearest
from lorasmith.methods import TaskType, named
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.families import HEADS

_FACTORS = {"lora_A": "a", "lora_B": "b"}


@dataclass(frozen=True)
class Loralib:
    """What a state dict does not say: alpha, the base, the task, and which projections a merged layer adapts.

    merged maps the name of a module to a flag a projection, as loralib's enable_lora: {"c_attn": (True, False, True)}.
    Raises AdapterError for an alpha that is not above 0.
    """

    alpha: float
    base: str | None = None
    task: TaskType | None = None
    merged: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise AdapterError(f"alpha={self.alpha:g} must be above 0; it is lora_alpha of the training")


def from_loralib(tensors: Mapping[str, Tensor], facts: Loralib) -> AdapterContent:
    """The adapter in PEFT's keys. Modules that were trained whole come along, named by their heads or themselves.

    Raises AdapterError for a state dict without pairs of factors, for one with biases of adapted modules, and for
    factors of shapes that do not fit together.
    """
    found, whole = _sorted_out(tensors)
    _require_modules(facts.merged, found)
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, pair in found.items():
        if pair.keys() != {"a", "b"}:
            raise AdapterError(f"{path} has only one of lora_A and lora_B; the file is incomplete")
        flags = next((flags for name, flags in facts.merged.items() if named(path, name)), None)
        a, b = pair["a"], pair["b"] if flags is None else _on_diagonal(path, pair["a"], pair["b"], flags)
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"{path} has factors of shapes {tuple(a.shape)} and {tuple(b.shape)}; if it is a MergedLinear, say "
                "which of its projections are adapted"
            )
        state |= {f"{KEY_PREFIX}{path}.lora_A.weight": a, f"{KEY_PREFIX}{path}.lora_B.weight": b}
        ranks[path] = a.shape[0]
        alphas[path] = facts.alpha * (sum(flags) if flags else 1)
    rank, pattern = rank_pattern(ranks)
    config = LoraConfig(
        task_type=facts.task,
        base_model_name_or_path=facts.base,
        r=rank,
        rank_pattern=pattern,
        lora_alpha=facts.alpha,
        alpha_pattern={path: alpha for path, alpha in alphas.items() if alpha != facts.alpha},
        # whole paths: what else of the base has such a name cannot be seen from here
        target_modules=sorted(found),
        modules_to_save=sorted({_whole_module(key) for key in whole}) or None,
    )
    return AdapterContent(config, state | {f"{KEY_PREFIX}{key}": value for key, value in whole.items()})


def _sorted_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Pairs of factors by module, and the tensors that were trained whole."""
    found: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in tensors.items():
        path, _, tensor = key.rpartition(".")
        if tensor in _FACTORS:
            found.setdefault(path, {})[_FACTORS[tensor]] = value
        else:
            whole[key] = value
    if not found:
        raise AdapterError("no tensor is named lora_A or lora_B; this is no state dict of loralib")
    biased = [key for key in whole if key.rpartition(".")[0] in found]
    if biased:
        raise AdapterError(
            f"{biased[0]} is a trained tensor of an adapted module, for which PEFT's files have no place"
        )
    return found, whole


def _require_modules(merged: Mapping[str, tuple[bool, ...]], found: Mapping[str, object]) -> None:
    """Raise AdapterError for the name of a merged layer that no adapted module has."""
    for name in merged:
        if not any(named(path, name) for path in found):
            known = {path.rpartition(".")[2]: None for path in found}
            raise AdapterError(
                f"no adapted module is named {name}, which is said to be merged; the file has {', '.join(known)}."
                f"{nearest(name, known)}"
            )


def _on_diagonal(path: str, a: Tensor, b: Tensor, flags: tuple[bool, ...]) -> Tensor:
    """B of a merged layer [projections x width, n r]: the rows of each adapted projection beside its own columns."""
    adapted = [place for place, flag in enumerate(flags) if flag]
    rank = b.shape[1]
    if not adapted or b.shape[0] % len(adapted) or a.shape[0] != rank * len(adapted):
        raise AdapterError(
            f"{path} has factors of shapes {tuple(a.shape)} and {tuple(b.shape)}, which are not those of "
            f"{len(adapted)} adapted projections out of {len(flags)}"
        )
    width = b.shape[0] // len(adapted)
    diagonal = torch.zeros(width * len(flags), a.shape[0], dtype=b.dtype)
    for number, place in enumerate(adapted):
        rows = slice(place * width, (place + 1) * width)
        diagonal[rows, number * rank : (number + 1) * rank] = b[number * width : (number + 1) * width]
    return diagonal


def _whole_module(key: str) -> str:
    head = key.split(".")[0]
    return head if head in HEADS else key.rpartition(".")[0]
