"""A CUDA graph's stand-in on a CPU: operations by address, recorded once and replayed without any Python of the step.

As in a graph, only tensors have places: what was read is read again where it lay, what was made is made again into the
memory of the recording, and numbers that Python held stay as they were. So a step is replayed rightly only if all that
changes between steps goes through memory that its owner writes to.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorasmith.decoding import NotRecordable

# a GPU would have to finish before Python could know the result, or its size
_WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class _Recording(TorchDispatchMode):
    """The operations of a block, their arguments and what they made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args):
            raise NotRecordable(f"its steps wait for {func}")
        places = {_place(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = func(*args, **kwargs)
        # views and what was written in place lie where they lay
        made = [
            (number, leaf)
            for number, leaf in enumerate(tree_leaves(output))
            if isinstance(leaf, Tensor) and _place(leaf) not in places
        ]
        self.calls.append((func, args, kwargs, made))
        return output


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _waits(func: Any, args: Any) -> bool:
    if func is torch.ops.aten.index.Tensor:
        # by numbers nothing is counted, by truth values it is
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return not _WAITING.isdisjoint(func.tags)


class Tape:
    """A Recorder; counts what it records and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, step: Any, again: Any) -> Any:
        step()
        again()
        with _Recording() as recording:
            output = step()
        again()
        self.recorded += 1

        def replay() -> Any:
            self.replayed += 1
            for func, args, kwargs, made in recording.calls:
                leaves = tree_leaves(func(*args, **kwargs))
                for number, place in made:
                    place.copy_(leaves[number])
            return output

        return replay
