"""A training step run on fake tensors, which have shapes and no data, while every allocation is counted.

Nothing about an architecture is assumed: autograd itself decides what is saved, so norms that upcast, attention that
keeps its log-sum-exp and activation functions that keep both factors are counted as they are.
"""

import copy
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lorasmith.attach import adapters_of
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.errors import PlanError
from lorasmith.models.activation_checkpointing import checkpoint_activations_
from lorasmith.models.offloaded_inputs import OffloadedInputs, Wait
from lorasmith.ops import DenseProduct
from lorasmith.ops.stand_in import standing_for
from lorasmith.planning.memory_plan import PlanSettings
from lorasmith.quantized import QuantizedLinear

_TRACED = "lorasmith_traced"


class _Elsewhere:
    """A mover of layers' inputs to memory that is not counted with the device's: of each, only shape and type go."""

    def __init__(self) -> None:
        self.bytes = 0

    def out(self, x: Tensor) -> tuple[Any, Wait]:
        self.bytes += x.numel() * x.element_size()
        return (x.shape, x.dtype), _done

    def back(self, host: Any) -> tuple[Tensor, Wait]:
        shape, dtype = host
        return torch.empty(shape, dtype=dtype), _done


def _done() -> None:
    return None


@dataclass(frozen=True)
class StepMemory:
    """Bytes besides weights, gradients and optimizer: kept between forward and backward, and at the highest moment.

    host is what waits in host memory meanwhile.
    """

    saved: int
    peak: int
    hidden: int
    host: int = 0


class _StorageMeter(TorchDispatchMode):
    """Counts the bytes of all storages born under it for as long as they live; those in known are not counted."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = _SHAPES.get(function, function)(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # a sparse tensor has no storage of its own; its places and values were born as tensors before it
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def _grouped_product(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The empty result of a product by groups of rows (of a batch of matrices, where there are no groups)."""
    groups = [] if a.dim() != b.dim() else [a.shape[0] if offs is None else offs.shape[0]]
    return a.new_empty(*groups, a.shape[-2], b.shape[-1], dtype=out_dtype)


# in place of shape functions of torch that take fewer types than the kernels: this one bfloat16 alone, in 16-byte rows
_SHAPES: dict[Any, Callable[..., Any]] = {torch.ops.aten._grouped_mm.default: _grouped_product}


class _DenseStandIn(nn.Module):
    """A quantized linear layer as autograd sees it: a frozen matrix, of which nothing but the product remains."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        out_features, in_features = layer.shape
        dtype = layer.compute_dtype or layer.dtype
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype), requires_grad=False)
        self.register_parameter("bias", layer._parameters["bias"])

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> y [..., out]."""
        own = self._parameters["bias"]
        bias = None if own is None else own.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    def product(self) -> DenseProduct:
        """Multiplying by the matrix, where an adapted layer runs as one step."""
        return DenseProduct(self.weight)

    def working_dtype(self, x: Tensor) -> torch.dtype:
        """The type of x: how the layer itself would convert it is not traced."""
        return x.dtype


def trace_step(model: PreTrainedModel, settings: PlanSettings, *, whole: bool) -> StepMemory:
    """Run forward and backward of one micro-batch on fake tensors and count what lives.

    whole runs the model with labels; otherwise only the part below the output head (transformers' base_model) runs.
    model may hold real or meta tensors and is not touched.
    Raises PlanError, with the reason, where its forward needs real data.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _quiet_failures():
            twin = _fake_twin(model, mode)
            with mode:
                return _run(twin, settings, whole)
    except Exception as error:  # any code of a model may fail without data, in any way
        raise PlanError(
            f"the memory of {type(model).__name__} cannot be predicted from shapes, because its forward failed "
            f"on fake tensors: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        ) from error


@contextmanager
def _quiet_failures() -> Iterator[None]:
    """No traceback of torch's on standard error for a failure that is told as one line."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled


def _fake_twin(model: PreTrainedModel, mode: FakeTensorMode) -> PreTrainedModel:
    tensors = chain(model.parameters(), model.buffers(), adapters_of(model).base_tensors.copies())
    with mode:
        # a copy that finds its tensors made already; shared ones stay shared
        made: dict[int, Any] = {id(tensor): _fake(tensor) for tensor in tensors}
        twin = copy.deepcopy(model, made)
        _dense_(twin)
        _without_waiting_(twin)
        return twin


def _fake(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _dense_(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, QuantizedLinear):
            setattr(module, name, _DenseStandIn(child))
        else:
            _dense_(child)


def _without_waiting_(model: nn.Module) -> None:
    """Let sites that wait for data act, as they will when they have seen some: here are shapes alone."""
    for holder in model.modules():
        if isinstance(holder, SiteHolder):
            for site in holder.sites.values():
                site.needs_data = False


def _without_masks_(model: PreTrainedModel) -> None:
    """Make attention causal by its flag: without data transformers would build a mask [T, T] that training has not."""
    if model._supports_sdpa and model.config._attn_implementation != "eager":
        AttentionInterface.register(_TRACED, sdpa_attention_forward)
        AttentionMaskInterface.register(_TRACED, _no_mask)
        model.set_attn_implementation(_TRACED)


def _no_mask(*sizes: object, **settings: object) -> None:
    return None


def _run(model: PreTrainedModel, settings: PlanSettings, whole: bool) -> StepMemory:
    model.train()
    if settings.task == "causal":
        _without_masks_(model)
    elsewhere = _Elsewhere()
    if settings.gradient_checkpointing:
        checkpoint_activations_(model, OffloadedInputs(elsewhere) if settings.offload_checkpoints else None)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if settings.optimizer.in_backward:
            parameter.register_post_accumulate_grad_hook(partial(_move, settings))
        else:
            # gradients exist beforehand, so that they are added in place and not counted here
            parameter.grad = torch.zeros_like(parameter)
    known = [*model.parameters(), *model.buffers()]
    known += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    inputs = _inputs(settings, with_labels=whole)
    autocast = nullcontext() if settings.autocast is None else torch.autocast("cpu", settings.autocast)
    with standing_for(settings.device), _StorageMeter(known) as meter:
        with autocast:
            output = model(**inputs) if whole else model.base_model(**inputs)
        value: Tensor = output.loss if whole else output.last_hidden_state
        del output
        saved, hidden = meter.live, value.numel() * value.element_size()
        if value.requires_grad:
            value.backward(torch.empty_like(value))
    return StepMemory(saved, meter.peak, hidden, elsewhere.bytes)


def _move(settings: PlanSettings, parameter: Tensor) -> None:
    """What a parameter's step in the backward pass allocates and frees."""
    torch.empty(settings.optimizer.update(parameter), dtype=torch.uint8)
    parameter.grad = None


def _inputs(settings: PlanSettings, with_labels: bool) -> dict[str, Any]:
    shape = (settings.batch_size, settings.length)
    inputs: dict[str, Any] = {"input_ids": torch.zeros(shape, dtype=torch.int64)}
    if settings.task == "causal":
        inputs["use_cache"] = False
    if with_labels:
        labels = shape if settings.task == "causal" else shape[:1]
        inputs["labels"] = torch.zeros(labels, dtype=torch.int64)
    return inputs
