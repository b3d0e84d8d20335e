"""Which linear layers of a transformers model are stored quantized, and which stay dense and why."""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorasmith.errors import ModelError, nearest
from lorasmith.models.families import HEADS, ROUTERS
from lorasmith.models.narrow_linear import PLAIN_LINEARS
from lorasmith.quantized import QuantizedLinear, Scheme


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Every plain linear layer by name; subclasses, which do something more, are not among them."""
    for name, module in model.named_modules():
        if type(module) in PLAIN_LINEARS or isinstance(module, Conv1D):
            yield name, module


def dense_reasons(model: PreTrainedModel, skip: Sequence[str] = ()) -> dict[str, str]:
    """Why each linear layer that is not to be quantized stays dense, by name.

    The output head, task heads, routers of experts, tied weights and what the architecture keeps in 32 bits stay
    dense, and what skip names: whole names, last parts of names, names of parents, or regular expressions.
    """
    output = model.get_output_embeddings()
    tied = {key.rpartition(".")[0] for pair in tied_keys(model).items() for key in pair}
    in_f32 = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    prefix = f"{model.base_model_prefix}."
    headed = model.base_model is not model
    reasons: dict[str, str] = {}
    for name, module in linears(model):
        last = name.rpartition(".")[2]
        if module is output:
            reasons[name] = "output head"
        elif (headed and not name.startswith(prefix)) or last in HEADS:
            reasons[name] = "task head"
        elif name in tied:
            reasons[name] = "tied weight"
        elif last in ROUTERS:
            reasons[name] = "router"
        elif matches(name, in_f32):
            reasons[name] = "kept in 32 bits by its architecture"
        elif matches(name, skip):
            reasons[name] = "skipped on request"
    return reasons


def stored_dense(model: PreTrainedModel, skip: Sequence[str]) -> list[str]:
    """Names of the linear layers of model that a stored checkpoint holds dense, or not at all.

    skip is the checkpoint's own list. A model of another class than the one that was saved has heads which the
    checkpoint cannot hold, and its names may lack or carry the prefix of the base model.
    """
    prefix = model.base_model_prefix
    same_class = type(model).__name__ in (model.config.architectures or [type(model).__name__])
    heads = {name for name, reason in dense_reasons(model).items() if reason in ("output head", "task head")}
    return [
        name
        for name, _ in linears(model)
        if any(matches(known, skip) for known in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")))
        or (name in heads and not same_class)
    ]


def require_skips(model: nn.Module, skip: Sequence[str]) -> None:
    """Raise ModelError for one of skip that means no module of model; the usual names of heads may mean none."""
    names = [name for name, _ in model.named_modules() if name]
    for pattern in skip:
        if pattern not in HEADS and not any(matches(name, [pattern]) for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names})
            raise ModelError(
                f"skip: no module of {type(model).__name__} is meant by {pattern!r}; give a whole name, its last part, "
                f"a parent, or an expression for the whole name.{nearest(pattern, ends)}"
            )


def tied_keys(model: PreTrainedModel) -> dict[str, str]:
    """Names of tied parameters: the one that is tied -> the one that it follows."""
    return dict(model.all_tied_weights_keys)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a module name is, ends with, lies under, or as a regular expression equals one of patterns."""
    return any(
        name == pattern
        or name.endswith(f".{pattern}")
        or name.startswith(f"{pattern}.")
        or re.fullmatch(pattern, name) is not None
        for pattern in patterns
    )


def replace_linears_(
    model: nn.Module,
    dense: Sequence[str],
    scheme: Scheme,
    dtype: torch.dtype,
    *,
    compute_dtype: torch.dtype | None = None,
    int8_threshold: float = 6.0,
) -> dict[str, bool]:
    """Put empty quantized layers on the meta device in place of the linear layers that dense does not list.

    Returns the names replaced, with whether the source keeps its weight transposed ([in, out], Conv1D).
    """
    replaced: dict[str, bool] = {}
    for name, module in list(linears(model)):
        if name in dense:
            continue
        transposed = isinstance(module, Conv1D)
        out_features, in_features = reversed(module.weight.shape) if transposed else module.weight.shape
        twin = QuantizedLinear(
            in_features,
            out_features,
            module.bias is not None,
            scheme,
            dtype=dtype,
            compute_dtype=compute_dtype,
            device="meta",
        )
        twin.int8_threshold = int8_threshold
        model.set_submodule(name, twin)
        replaced[name] = transposed
    return replaced
