"""What a recorded step takes for granted beside its inputs: which adapters act and how, and where the weights lie."""

import weakref
from collections.abc import Hashable, Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorasmith.attach import Adapters
from lorasmith.decoding.recorder import NotRecordable

_HARMLESS_HOOKS = "transformers.utils.output_capturing"
"""transformers' own hooks hand inner tensors out through the output, where a replay finds them."""


class Weights:
    """The parameters and buffers of a model as they were: which tensors, where they lie, how often written to.

    A write through `.data` goes unseen.
    """

    def __init__(self, model: nn.Module) -> None:
        self._stamps = [(weakref.ref(tensor), tensor.data_ptr(), _writes(tensor)) for tensor in _tensors(model)]

    def hold(self, model: nn.Module) -> bool:
        """Whether model's are these still."""
        tensors = list(_tensors(model))
        return len(tensors) == len(self._stamps) and all(
            known() is tensor and place == tensor.data_ptr() and writes == _writes(tensor)
            for tensor, (known, place, writes) in zip(tensors, self._stamps, strict=True)
        )


def acting(model: PreTrainedModel, book: Adapters) -> Hashable:
    """What decides which work a forward does: adapters and rows, the attention, kinds and plain attributes of modules.

    The attributes hold modes, merges and scalings, which are numbers in the recorded work.
    """
    attention = model.config.get_text_config(decoder=True)._attn_implementation
    modules = tuple((type(part), *_plain(part)) for part in _with_hidden(model.modules()))
    return tuple(book.active), book.enabled, book.assigned, attention, modules


def check(model: PreTrainedModel, book: Adapters, device: torch.device) -> None:
    """Raise NotRecordable for a model whose forward is more than operations on device."""
    if book.prompted is not None and book.prompted.prompt is not None:
        raise NotRecordable("a soft prompt acts, which enters in Python at every step")
    if any(module.training for module in model.modules()):
        raise NotRecordable("the model is in training mode; call eval()")
    hooked = next((path for path, module in model.named_modules() if path and _hooked(module)), None)
    if hooked is not None:
        raise NotRecordable(f"{hooked} has a forward hook, which a replay would leave out")
    elsewhere = {str(tensor.device) for tensor in _tensors(model) if tensor.device != device}
    if elsewhere:
        raise NotRecordable(f"parts of the model are not on {device} ({', '.join(sorted(elsewhere))})")


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _writes(tensor: Tensor) -> int:
    # tensors of the inference mode count none
    return 0 if tensor.is_inference() else tensor._version


def _with_hidden(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """modules, and those that one keeps beside its children, as a wrapper does its sites."""
    for module in modules:
        yield module
        for value in vars(module).values():
            kept = value.values() if type(value) is dict else value if isinstance(value, tuple | list) else ()
            yield from _with_hidden(part for part in kept if isinstance(part, nn.Module))


def _plain(module: nn.Module) -> Iterator[Hashable]:
    noted = isinstance(module, PreTrainedModel)
    for name, value in vars(module).items():
        # transformers notes there what earlier calls did, such as the length of their cache
        if noted and name.startswith("_"):
            continue
        if isinstance(value, bool | int | float | str | torch.dtype):
            yield name, value
        elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            yield name, tuple(value)


def _hooked(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(hook.__module__ != _HARMLESS_HOOKS for hook in hooks)
