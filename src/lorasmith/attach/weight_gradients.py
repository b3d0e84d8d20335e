"""The gradients of frozen weights over some data, for starts that choose by them, without training anything.

A linear layer's weight [O, I] has the gradient g^T x of its input x [..., I] and its output's gradient g [..., O], in
whatever format the weight is stored. Layers take turns in groups, so that few sums of such gradients exist at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from lorasmith.attach.adapters import Adapters
from lorasmith.attach.base_at_work import base_watched
from lorasmith.errors import AttachError
from lorasmith.methods import Site
from lorasmith.ops.precision import without_autocast

# bytes of f32 sums that exist at a time; a layer of 4096 x 4096 takes 64 MiB
GRADIENT_BYTES = 2 << 30

B = TypeVar("B")


def begin_at_gradients_(
    book: Adapters,
    name: str,
    batches: Iterable[B],
    loss: Callable[[B], Tensor],
    *,
    most_bytes: int = GRADIENT_BYTES,
    recompute: bool = False,
) -> None:
    """Let the sites of one adapter that wait for data begin at their weights' gradients, summed over batches.

    The loss of a batch is a scalar, computed by the bare base. batches are gone through once for every group of layers
    whose sums take most_bytes (a single layer may take more). With recompute the model's activation checkpointing, if
    it is switched on, acts too. Raises AttachError, and leaves the model clean, where no batch reaches a layer.
    """
    waiting = {path: site for path, site in book.sites(name) if site.needs_data}
    if isinstance(batches, Iterator):
        batches = list(batches)
    holders = dict(book.adapted())
    for group in _groups(waiting, most_bytes):
        sums = _summed(book, group, batches, loss, recompute)
        for path, site in group.items():
            site.begin_at_gradient(holders[path].base_weight, _checked(path, sums.pop(path, None)))


def _groups(sites: Mapping[str, Site], most_bytes: int) -> Iterator[dict[str, Site]]:
    group: dict[str, Site] = {}
    used = 0
    for path, site in sites.items():
        size = 4 * site.layer.out_features * site.layer.in_features
        if group and used + size > most_bytes:
            yield group
            group, used = {}, 0
        group[path] = site
        used += size
    if group:
        yield group


def _summed(
    book: Adapters, group: Iterable[str], batches: Iterable[B], loss: Callable[[B], Tensor], recompute: bool
) -> dict[str, Tensor]:
    """The sum of the weight's gradients [O, I] in f32 of each layer of group that a batch reached, by path."""
    sums: dict[str, Tensor] = {}
    empty = True
    with base_watched(book, group, partial(_watched, sums)), torch.enable_grad():
        if recompute:
            _recompute(book)
        for batch in batches:
            empty = False
            value = loss(batch)
            # without a gradient no layer of the group was reached (experts)
            if value.requires_grad:
                value.backward()
    if empty:
        raise AttachError("there is no batch of data to choose by; give batches of the data to train on")
    return sums


def _recompute(book: Adapters) -> None:
    """Put the layers that transformers recomputes, and nothing inside them, into the mode in which it does."""
    for module in book.model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def _watched(sums: dict[str, Tensor], path: str, x: Tensor, y: Tensor) -> Tensor:
    # all below the lowest layer of the group needs no gradient: the graph begins at its output
    above = y if y.requires_grad else y.detach().requires_grad_()
    watched: Tensor = _Watched.apply(above, x.detach(), partial(_add, sums, path))
    return watched


def _add(sums: dict[str, Tensor], path: str, x: Tensor, gradient: Tensor) -> None:
    rows_NI, gradient_NO = x.flatten(0, -2), gradient.flatten(0, -2)
    if path not in sums:
        sums[path] = torch.zeros(gradient_NO.shape[1], rows_NI.shape[1], device=x.device)
    with without_autocast(x.device):
        sums[path].addmm_(gradient_NO.float().T, rows_NI.float())


class _Watched(torch.autograd.Function):
    """y itself; add gets x and the gradient of y in the backward."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, add: Callable[[Tensor, Tensor], None]) -> Tensor:
        # saved, not held by a hook: so activation checkpointing makes it again as it does others
        ctx.save_for_backward(x)
        ctx.add = add
        # a copy: what follows may change it in place, which a view out of here forbids
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.add(x, gradients[0])
        return gradients[0], None, None


def _checked(path: str, gradient: Tensor | None) -> Tensor:
    if gradient is None or not gradient.any():
        raise AttachError(
            f"{path}: no batch gives its weight a gradient; give batches with labels that reach it, or exclude it"
        )
    if not gradient.isfinite().all():
        raise AttachError(f"{path}: the gradient of its weight is not finite; compute in bfloat16 or float32")
    return gradient
