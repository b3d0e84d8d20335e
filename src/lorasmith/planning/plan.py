"""The memory model: sums the bytes that weights and methods hold of themselves, optimizer state, and a traced step."""

from collections.abc import Sequence
from itertools import chain
from math import prod

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorasmith.attach import adapters_of
from lorasmith.ops.cross_entropy.chunked import linear_workspace, module_workspace
from lorasmith.ops.cross_entropy.schema import default_chunk
from lorasmith.ops.precision import product_dtype
from lorasmith.planning.memory_plan import MemoryPlan, PlanSettings
from lorasmith.planning.resident import resident_bytes
from lorasmith.planning.step_trace import StepMemory, trace_step
from lorasmith.quantized import QuantizedLinear, QuantizedWeight

# What a process holds beyond its live tensors, fitted with benchmarks/plan_accuracy.py (glibc 2.36, 2 threads): freed
# blocks that the heap cannot use again, as a share of what a step allocates, and the libraries' own buffers. Recomputed
# layers leave most of them (one model of 12 layers; more layers leave more), and few are left where they are returned
# at once (docs/log.md, "What the heap keeps").
HEAP_HOLES = 0.38
HEAP_HOLES_RECOMPUTED = 2.1
HEAP_HOLES_RETURNED = 0.05
LIBRARY_BUFFERS = 80 << 20


def plan(model: PreTrainedModel, settings: PlanSettings) -> MemoryPlan:
    """Predict the peak memory of training model, with its adapters attached, from shapes alone.

    model is a transformers model as it will train (quantized layers and adapters in place, frozen parameters marked
    so); it may stand on the meta device, and is not touched. The highest moment of a step is predicted: all weights,
    gradients and optimizer state, and beside them what autograd keeps with the larger of the head's and the backward
    pass's workspace, or, if that is more, what the update of a parameter works with. Where parameters move in the
    backward pass, gradients and updates are part of its workspace; state that pages stands beside the peak.
    Raises PlanError where the model's forward cannot run without data.
    """
    head = output_head(model) if settings.task == "causal" else None
    step = trace_step(model, settings, whole=head is None)
    head_bytes = 0 if head is None else _head_bytes(head, step, settings)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, kept = settings.optimizer, sum(settings.optimizer.state(p) for p in trainable)
    # activations are gone by then, or the trace has counted it
    update = 0 if optimizer.in_backward else max(map(optimizer.update, trainable), default=0)
    held = {**_weights(model), "copies of trained base tensors": _bytes(adapters_of(model).base_tensors.copies())}
    components = {
        **held,
        "gradients": _bytes(_outside(model.base_model, trainable) if optimizer.in_backward else trainable),
        "optimizer state": 0 if optimizer.pages else kept,
        "activations kept for backward": step.saved,
        "logits and loss": head_bytes,
        "other working memory of a step": max(0, max(step.peak, update) - step.saved - head_bytes),
        "one dequantized weight": _dequantized_bytes(model, settings),
    }
    components |= _process(settings, allocated=sum(components.values()) - sum(held.values()))
    predicted = {name: size for name, size in components.items() if size}
    return MemoryPlan(predicted, host=step.host + (kept if optimizer.pages else 0))


def _process(settings: PlanSettings, allocated: int) -> dict[str, int]:
    """What this process adds where its own memory counts; nothing on an accelerator, whose baseline is 0."""
    if settings.baseline == 0:
        return {}
    baseline = resident_bytes() if settings.baseline is None else settings.baseline
    return {
        "holes in the heap": round(_hole_share(settings) * allocated),
        "Python and its libraries": baseline + LIBRARY_BUFFERS,
    }


def _hole_share(settings: PlanSettings) -> float:
    if settings.return_freed_memory:
        return HEAP_HOLES_RETURNED
    return HEAP_HOLES_RECOMPUTED if settings.gradient_checkpointing else HEAP_HOLES


def output_head(model: PreTrainedModel) -> nn.Module | None:
    """The layer that turns hidden states into logits, where it can run apart from the layers below it."""
    head = model.get_output_embeddings()
    return None if model.base_model is model or not isinstance(head, nn.Module) else head


def _weights(model: nn.Module) -> dict[str, int]:
    stored = [module.stored.values() for module in model.modules() if isinstance(module, QuantizedWeight)]
    quantized = {id(tensor) for tensor in chain.from_iterable(stored)}
    groups: dict[str, list[Tensor]] = {"quantized weights": [], "unquantized weights": [], "trainable parameters": []}
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.requires_grad:
            groups["trainable parameters"].append(tensor)
        else:
            groups["quantized weights" if id(tensor) in quantized else "unquantized weights"].append(tensor)
    return {name: _bytes(tensors) for name, tensors in groups.items()}


def _outside(traced: nn.Module, trainable: Sequence[Tensor]) -> list[Tensor]:
    """What the trace of a step below the head does not see."""
    seen = {id(parameter) for parameter in traced.parameters()}
    return [parameter for parameter in trainable if id(parameter) not in seen]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _head_bytes(head: nn.Module, step: StepMemory, settings: PlanSettings) -> int:
    weight, device = head.weight, torch.device(settings.device)
    assert isinstance(weight, Tensor)
    vocabulary, width = head.shape if isinstance(head, QuantizedWeight) else weight.shape
    rows = min(settings.batch_size * settings.length, default_chunk(vocabulary, device))
    if isinstance(head, QuantizedWeight):
        logits = module_workspace(rows, vocabulary, settings.autocast or head.dtype, device)
    else:
        logits = linear_workspace(rows, vocabulary, width, weight.dtype, device)
    return logits + step.hidden


def _dequantized_bytes(model: nn.Module, settings: PlanSettings) -> int:
    device = torch.device(settings.device)
    sizes: list[int] = [
        prod(layer.shape) * product_dtype(settings.autocast or layer.compute_dtype or layer.dtype, device).itemsize
        for layer in model.modules()
        if isinstance(layer, QuantizedLinear)
    ]
    return max(sizes, default=0)
