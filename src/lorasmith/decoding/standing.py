"""What a recorded step takes for granted beside its inputs: which adapters act and how, and where the weights lie."""

import weakref
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorasmith.attach import Adapters
from lorasmith.decoding.recorder import NotRecordable

# transformers' own hooks hand inner tensors out through the output, where a replay finds them
_HARMLESS_HOOKS = "transformers.utils.output_capturing"
_IN_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = (bool, int, float, str, torch.dtype)


class Weights:
    """The parameters and buffers of modules as they were: which tensors, where they lie, how often written to.

    A write through `.data` goes unseen.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._stamps = [(weakref.ref(tensor), tensor.data_ptr(), _writes(tensor)) for tensor in _tensors(modules)]

    def hold(self, modules: Iterable[nn.Module]) -> bool:
        """Whether those of modules are these still."""
        tensors = list(_tensors(modules))
        return len(tensors) == len(self._stamps) and all(
            known() is tensor and place == tensor.data_ptr() and writes == _writes(tensor)
            for tensor, (known, place, writes) in zip(tensors, self._stamps, strict=True)
        )


def parts(model: nn.Module) -> list[nn.Module]:
    """All modules of model, and those that a module keeps beside its children, as a wrapper does its sites."""
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in found:
            continue
        found[id(module)] = module
        waiting += [child for child in module._modules.values() if child is not None]
        for _, value in _attributes(module):
            if type(value) in (dict, tuple, list):
                kept = value.values() if isinstance(value, dict) else value
                waiting += [part for part in kept if isinstance(part, nn.Module)]
    return list(found.values())


def acting(model: PreTrainedModel, book: Adapters, modules: Iterable[nn.Module]) -> Hashable:
    """What decides which work a forward does: adapters and rows, the attention, kinds and plain attributes of modules.

    The attributes hold modes, merges and scalings, which are numbers in the recorded work.
    """
    attention = model.config.get_text_config(decoder=True)._attn_implementation
    plain = tuple((type(module), *_plain(module)) for module in modules)
    return tuple(book.active), book.enabled, book.assigned, attention, plain


def check(model: nn.Module, book: Adapters, modules: Iterable[nn.Module], device: torch.device) -> None:
    """Raise NotRecordable for a model whose forward is more than operations on device."""
    if book.prompted is not None and book.prompted.prompt is not None:
        raise NotRecordable("a soft prompt acts, which enters in Python at every step")
    if any(module.training for module in model.modules()):
        raise NotRecordable("the model is in training mode; call eval()")
    # around the model itself hooks run in any case
    if any(_hooked(module) for module in modules if module is not model):
        path = next(path for path, module in model.named_modules() if path and _hooked(module))
        raise NotRecordable(f"{path} has a forward hook, which a replay would leave out")
    elsewhere = {str(tensor.device) for tensor in _tensors(modules) if tensor.device != device}
    if elsewhere:
        raise NotRecordable(f"parts of the model are not on {device} ({', '.join(sorted(elsewhere))})")


def _tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from (tensor for tensor in module._parameters.values() if tensor is not None)
        yield from (tensor for tensor in module._buffers.values() if tensor is not None)


def _writes(tensor: Tensor) -> int:
    # tensors of the inference mode count none
    return 0 if tensor.is_inference() else tensor._version


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in vars(module).items() if name not in _IN_EVERY_MODULE)


def _plain(module: nn.Module) -> Iterator[Hashable]:
    noted = isinstance(module, PreTrainedModel)
    for name, value in _attributes(module):
        # transformers notes there what earlier calls did, such as the length of their cache
        if noted and name.startswith("_"):
            continue
        if isinstance(value, _PLAIN):
            yield name, value
        elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            yield name, tuple(value)


def _hooked(module: nn.Module) -> bool:
    if not module._forward_hooks and not module._forward_pre_hooks:
        return False
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(hook.__module__ != _HARMLESS_HOOKS for hook in hooks)
