"""Inputs of recomputed layers that wait for the backward pass in host memory.

With recomputation a step keeps one tensor a layer, which on long sequences is most of what it keeps. Each goes to host
memory while its layer computes, and comes back while the layer above it is recomputed, so that the device holds two at
a time. On a GPU the copies run on a stream of their own, out of pinned memory; the values are not changed.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lorasmith.errors import DeviceError

Wait = Callable[[], None]
"""Makes what is computed from now on wait for a copy."""


class Mover(Protocol):
    """Copies tensors to host memory and back; what stands for one there is its own affair."""

    def out(self, x: Tensor) -> tuple[Any, Wait]:
        """Begin to copy x out."""

    def back(self, host: Any) -> tuple[Tensor, Wait]:
        """Begin to copy into a new tensor what out gave."""


class Copies:
    """A mover without streams: copies in the memory where tensors are. What the overlapping is tested with."""

    def out(self, x: Tensor) -> tuple[Tensor, Wait]:
        return x.detach().clone(), _nothing

    def back(self, host: Tensor) -> tuple[Tensor, Wait]:
        return host.clone(), _nothing


class SideStream:
    """A mover over a CUDA stream beside the current one, to pinned memory, which PyTorch keeps for the next step.

    Both streams wait where one needs the other's memory, so that no tensor is freed late: the side stream before it
    reads x or writes into a new tensor, the current one before x is let go or the copy is used.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def out(self, x: Tensor) -> tuple[Tensor, Wait]:
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        self._copy(host, x.detach())
        return host, self._waiting()

    def back(self, host: Tensor) -> tuple[Tensor, Wait]:
        y = torch.empty(host.shape, dtype=host.dtype, device=self.device)
        self._copy(y, host)
        return y, self._waiting()

    def _copy(self, target: Tensor, source: Tensor) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def _waiting(self) -> Wait:
        copied = self.stream.record_event()
        return lambda: torch.cuda.current_stream(self.device).wait_event(copied)


def offloaded_inputs(device: torch.device) -> "OffloadedInputs":
    """Inputs of layers on device kept in host memory. Raises DeviceError where that is the device's own memory."""
    if not offloads(device):
        raise DeviceError(
            f"offload_checkpoints=true needs a CUDA GPU; {device.type} has no other memory: set it to false"
        )
    return OffloadedInputs(SideStream(device))


def offloads(device: torch.device) -> bool:
    """Whether tensors of device can wait elsewhere."""
    return device.type == "cuda"


@dataclass(eq=False)
class _Kept:
    """One layer's input: its copy in host memory, and itself while it is still, or again, on the device."""

    host: Any
    on_device: Tensor | None
    wait: Wait
    # weak: what the graph lets go, a neighbour must not keep
    below: "weakref.ref[_Kept] | None"


class OffloadedInputs:
    """What checkpointing keeps of layers, by a mover: out as they are kept, back one layer ahead of the backward."""

    def __init__(self, mover: Mover) -> None:
        self.mover = mover
        self._last: weakref.ref[_Kept] | None = None

    def around(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with what it saves of its own arguments kept here.

        What the layer saves inside goes by the hooks of checkpointing, which are the inner ones.
        """

        def offloaded(*arguments: Any, **keywords: Any) -> Any:
            with saved_tensors_hooks(self._keep, self._give):
                return checkpoint(*arguments, **keywords)

        return offloaded

    def _keep(self, x: Tensor) -> Tensor | _Kept:
        # masks, positions and empty marks are not worth a copy
        if not x.is_floating_point() or not x.numel() or x.dim() < 2:
            return x
        below = self._alive()
        if below is not None:
            _let_go(below)
        host, wait = self.mover.out(x)
        kept = _Kept(host, x.detach(), wait, self._last)
        self._last = weakref.ref(kept)
        return kept

    def _give(self, kept: Tensor | _Kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if kept.on_device is None:
            kept.on_device, kept.wait = self.mover.back(kept.host)
        x = kept.on_device
        kept.wait()
        kept.on_device = None
        below = kept.below() if kept.below is not None else None
        if below is not None and below.on_device is None:
            below.on_device, below.wait = self.mover.back(below.host)
        return x

    def _alive(self) -> _Kept | None:
        return self._last() if self._last is not None else None


def _let_go(kept: _Kept) -> None:
    """Free the tensor on the device once its copy is complete."""
    kept.wait()
    kept.on_device = None


def _nothing() -> None:
    return None
