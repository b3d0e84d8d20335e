"""One recorded decode step: buffers for all that its caller gives it, and what replays it on them."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from lorasmith.decoding.cache_buffers import CacheBuffers
from lorasmith.decoding.recorder import NotRecordable, Recorder

Name = tuple[str, str | None]
"""An argument, and the entry where it is a dict (masks by the kind of layer)."""


class Inputs:
    """The arguments of a step apart: tensors, which are new each time, and all else, which is part of the work."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.tensors: dict[Name, Tensor] = {}
        constants: list[tuple[Name, Any]] = []
        for name, value in arguments.items():
            parts = value.items() if isinstance(value, dict) else ((None, value),)
            for entry, part in parts:
                if isinstance(part, Tensor):
                    self.tensors[name, entry] = part
                elif part is None or isinstance(part, bool | int | float | str):
                    constants.append(((name, entry), part))
                elif not isinstance(part, Cache):
                    raise NotRecordable(f"its steps are given a {type(part).__name__} as {name}")
        mask = self.tensors.get(("attention_mask", None))
        if mask is not None and mask.dim() == 2:
            raise NotRecordable("the attention takes a mask that grows with every token")
        self.kind: Hashable = (
            tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in self.tensors.items()),
            tuple(constants),
        )


class RecordedStep:
    """A step of one kind on one set of cache buffers."""

    def __init__(
        self, forward: Callable[..., Any], arguments: Mapping[str, Any], buffers: CacheBuffers, recorder: Recorder
    ) -> None:
        self.cache_buffers = buffers
        with torch.inference_mode(False):
            self._inputs = {
                name: torch.empty_like(tensor, memory_format=torch.contiguous_format)
                for name, tensor in Inputs(arguments).tensors.items()
            }
        self._fill(Inputs(arguments))
        own = {name: self._own(name, value) for name, value in arguments.items()}
        start = buffers.place()
        try:
            self._replay = recorder.record(lambda: _checked(forward(**own)), lambda: buffers.back_to(start))
        finally:
            buffers.back_to(start)

    def play(self, inputs: Inputs) -> Any:
        """The step's output for inputs, whose tensors are the caller's own; it advances the borrower's cache."""
        self._fill(inputs)
        self.cache_buffers.follow()
        output = _handed(self._replay(), self.cache_buffers.lent_to)
        self.cache_buffers.advance()
        return output

    def _fill(self, inputs: Inputs) -> None:
        for name, tensor in inputs.tensors.items():
            self._inputs[name].copy_(tensor)

    def _own(self, name: str, value: Any) -> Any:
        """The argument as the recorded step gets it."""
        if isinstance(value, dict):
            return {entry: self._inputs.get((name, entry), part) for entry, part in value.items()}
        if isinstance(value, Cache):
            return self.cache_buffers.cache
        return self._inputs.get((name, None), value)


def _checked(output: Any) -> Any:
    """output, if it is made of nothing but what _handed knows."""
    parts = output.values() if isinstance(output, ModelOutput) else output if isinstance(output, tuple) else ()
    for part in parts:
        _checked(part)
    if not isinstance(output, ModelOutput | tuple | Tensor | Cache | bool | int | float | str | None):
        raise NotRecordable(f"its steps return a {type(output).__name__}")
    return output


def _handed(value: Any, cache: Cache | None) -> Any:
    """value with tensors that no replay overwrites, and the caller's cache."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Cache):
        return cache
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _handed(part, cache) for name, part in value.items()})
    if isinstance(value, tuple):
        return tuple(_handed(part, cache) for part in value)
    return value
