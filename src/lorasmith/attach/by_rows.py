"""A layer whose rows belong to different adapters: one computation for all that are there.

Low-rank updates share one step with the frozen product. Where a kernel serves segments, on a GPU, factors are stacked
and each row is multiplied by its own, in as many launches as one adapter takes. Elsewhere, with few rows, as in
generating, h = x [A_1; A_2; ...]^T for all rows, of which a gate leaves each row its own adapter's part; with many rows
each update computes on its own, since the gated stack's arithmetic grows with the number of adapters. Sites that are no
low-rank updates act on their own rows one after another.
Axes: N rows, O out_features, R rank, P adapters that are there.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.attach.assignment import Assignment
from lorasmith.errors import AttachError
from lorasmith.methods import BaseWeight, Site
from lorasmith.methods.kept import Kept
from lorasmith.ops import LowRank
from lorasmith.ops.library import NATIVE_KERNELS

# multiplications and additions that a stack may cost an adapter: what starting its thin products apart takes
STACKED_WORK = 2_000_000

# stacked factors; of gated ones each adapter's gate [P, R], and gain [P, O] where one has any
Stack = tuple[LowRank, Tensor | None, Tensor | None]


def updates_by_rows(
    assigned: Assignment, updates: Mapping[str, LowRank], x: Tensor, kept: Kept[Stack | None]
) -> list[LowRank]:
    """The updates of x [..., in] by each adapter's own rows, or one that stands for all."""
    count = x.numel() // x.shape[-1]
    if _in_segments(updates, x.device.type):
        return [_segmented(assigned, updates, x, kept)]
    stack = None if torch.is_grad_enabled() else _stacked(assigned, updates, count, kept)
    if stack is None:
        runs = assigned.runs(count)
        return [replace(update, rows=_on(runs[name], x.device)) for name, update in updates.items()]
    update, gates_PR, gains_PO = stack
    assert gates_PR is not None
    numbers = assigned.numbers(count).to(x.device)
    gain = None if gains_PO is None else gains_PO[numbers]
    return [replace(update, gate=gates_PR[numbers], gain=gain)]


def _in_segments(updates: Mapping[str, LowRank], device: str) -> bool:
    """Whether updates are one of each row's own factors: of one dropout, and without gains, which grow with O."""
    return (
        device in NATIVE_KERNELS["segmented_project"]
        and len(updates) > 1
        and len({update.dropout for update in updates.values()}) == 1
        and all(u.gain is u.gate is u.rows is None for u in updates.values())
    )


def _segmented(assigned: Assignment, updates: Mapping[str, LowRank], x: Tensor, kept: Kept[Stack | None]) -> LowRank:
    """One update of all rows of x; its stack is kept while the factors do not change, unless they train."""
    factors = {name: (update.rank, update.scaling) for name, update in updates.items()}
    segments = assigned.segments(x.numel() // x.shape[-1], factors, x.device)

    def stack() -> Stack:
        # in the order of the segments
        acting = [updates[name].stacked for name in assigned.present if name in updates]
        # B turned, as its products read it
        b_RO = torch.cat([pair.b.T for pair in acting])
        return LowRank(torch.cat([pair.a for pair in acting]), b_RO.T, 1.0, acting[0].dropout), None, None

    if torch.is_grad_enabled():
        made: Stack | None = stack()
    else:
        sources = [tensor for u in updates.values() for tensor in (u.a, u.b, *(u.start or ()))]
        made = kept.get(sources, stack, ("segments", assigned.present, tuple(factors)))
    assert made is not None
    return replace(made[0], segments=segments)


def _stacked(
    assigned: Assignment, updates: Mapping[str, LowRank], count: int, kept: Kept[Stack | None]
) -> Stack | None:
    """The updates as one, kept while they do not change, where that is the faster way for count rows.

    Never for values that are not finite, which would reach the rows of others: zero times them is not zero.
    """
    work = sum(2 * count * update.a.shape[0] * (update.a.shape[1] + update.b.shape[0]) for update in updates.values())
    if work > STACKED_WORK * len(updates) or not all(update.plain for update in updates.values()):
        return None
    parts = [(u.a, u.b, u.gain, *(u.start or ())) for u in updates.values()]
    sources = [tensor for tensors in parts for tensor in tensors if tensor is not None]
    key = (assigned.present, [update.scaling for update in updates.values()])
    return kept.get(sources, lambda: _stack([updates.get(name) for name in assigned.present]), key)


def _stack(updates: list[LowRank | None]) -> Stack | None:
    """Stacked factors, and for each adapter the gate [P, R] and gain [P, O] of its rows; None among updates has none.

    None where a value is not finite.
    """
    # a start is one more pair of factors of the same adapter
    updates = [None if update is None else update.stacked for update in updates]
    acting = [update for update in updates if update is not None]
    a_RI = torch.cat([update.a for update in acting])
    b_OR = torch.cat([update.b for update in acting], 1)
    gates_PR = a_RI.new_zeros(len(updates), a_RI.shape[0])
    first = 0
    for number, update in enumerate(updates):
        if update is not None:
            rank = update.a.shape[0]
            gates_PR[number, first : first + rank] = update.scaling
            first += rank
    gains_PO = None
    if any(update.gain is not None for update in acting):
        ones_O = b_OR.new_ones(b_OR.shape[0])
        gains_PO = torch.stack([ones_O if u is None or u.gain is None else u.gain for u in updates])
    if not all(bool(factor.isfinite().all()) for factor in (a_RI, b_OR)):
        return None
    return LowRank(a_RI, b_OR, 1.0), gates_PR, gains_PO


def each_on_its_rows(
    assigned: Assignment,
    sites: Mapping[str, Site],
    x: Tensor,
    layer: Callable[[Tensor], Tensor],
    weight: BaseWeight,
) -> Tensor:
    """layer's output with every site's change of the input and the output on its own rows."""
    rows = {name: _numbered(assigned, name, x) for name in sites}
    changed = x
    for name, site in sites.items():
        if type(site).before is not Site.before:
            part = site.before(x.index_select(assigned.axis, rows[name]))
            changed = changed.index_copy(assigned.axis, rows[name], part.to(x.dtype))
    y = layer(changed)
    for name, site in sites.items():
        x_own, y_own = (values.index_select(assigned.axis, rows[name]) for values in (x, y))
        y = y.index_copy(assigned.axis, rows[name], site.after(x_own, y_own, weight).to(y.dtype))
    return y


def whole_modules_by_rows(
    assigned: Assignment, modules: Mapping[str, nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """What each name's module returns for its own rows of the first argument, in the order of the batch."""
    if not args or not isinstance(args[0], Tensor):
        raise AttachError(
            "a module that adapters train whole got no tensor first; its rows serve one adapter at a time"
        )
    x, rest = args[0], args[1:]
    assigned.check(x)
    rows = [_numbered(assigned, name, x) for name in assigned.present]
    parts = [
        modules[name](x.index_select(assigned.axis, own), *rest, **kwargs)
        for name, own in zip(assigned.present, rows, strict=True)
    ]
    shapes = {tuple(part.shape[assigned.axis + 1 :]) if isinstance(part, Tensor) else None for part in parts}
    if None in shapes or len(shapes) > 1:
        raise AttachError(
            "modules that adapters train whole return no tensors of one shape here (heads with other classes?); "
            "serve these adapters in batches of their own"
        )
    return torch.cat(parts, assigned.axis).index_select(assigned.axis, torch.cat(rows).argsort())


def _numbered(assigned: Assignment, name: str, x: Tensor) -> Tensor:
    """The numbers of the rows of name along the axis that names belong to."""
    run = assigned.runs(x.shape[assigned.axis])[name]
    if isinstance(run, slice):
        return torch.arange(run.start, run.stop, device=x.device)
    return run.to(x.device)


def _on(run: slice | Tensor, device: torch.device) -> slice | Tensor:
    return run if isinstance(run, slice) else run.to(device)
