"""Attention of a loaded transformers model whose queries and keys are turned as one operation.

transformers' attention calls a function of its file by the name apply_rotary_pos_emb, which nothing of a module can
exchange. So the forward that runs is the class's own code with that one name bound to a function of ours, in a copy of
the names it was written among: other modules, other models and the file itself see nothing of it. Ours is chosen by a
trial against theirs, to the bit, and hands every call that it does not take to theirs.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.models.fused_module import Fused, suits
from lorasmith.models.joined_layers import joined
from lorasmith.ops import Rotation, rotary
from lorasmith.ops.rotary.schema import misfit

logger = logging.getLogger(__name__)

NAME = "apply_rotary_pos_emb"
_ROTATIONS = [Rotation(*options) for options in product((False, True), repeat=3)]
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
Turn = Callable[..., Any]


@dataclass(frozen=True)
class RotaryRule:
    """How a function turns: together or one tensor a call, heads whole or in part, by tables of either type."""

    together: bool
    in_part: bool
    alike: Rotation | None
    """With tables of the states' type."""
    mixed: Rotation | None
    """With f32 tables, states of 16 bits."""


class FusedAttention(Fused):
    """Attention with the op in the place of its function, and q, k and v in one step where their layers allow it."""

    rule: RotaryRule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward gives."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(*args, **kwargs)
        forward = _turning(self.own_class.forward, self.rule)
        x = args[0] if args else kwargs.get("hidden_states")
        layers = [self._modules.get(name) for name in _PROJECTIONS]
        with joined(layers, x) if isinstance(x, Tensor) else nullcontext():
            return forward(self, *args, **kwargs)


def rotary_rule(module: nn.Module) -> RotaryRule | None:
    """The rule of the function that module's forward calls; None where there is none, or the op is not like it."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(NAME)
    return _rule_of(own) if callable(own) else None


@cache
def _turning(forward: FunctionType, rule: RotaryRule) -> Turn:
    """The code of forward, calling the op."""
    names = {**forward.__globals__, NAME: partial(_turn, forward.__globals__[NAME], rule)}
    made = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def _turn(own: Turn, rule: RotaryRule, *args: Any, **kwargs: Any) -> Any:
    """What own gives for these arguments: (q, k, cos, sin), or (x, cos, sin) where it takes one at a time."""
    given = 4 if rule.together else 3
    heads_at = kwargs.get("unsqueeze_dim", 1)
    if len(args) != given or set(kwargs) - {"unsqueeze_dim"} or heads_at not in (1, 2) or not suits("rotary", *args):
        return own(*args, **kwargs)
    *states, cos, sin = args
    rotation = rule.alike if cos.dtype == states[0].dtype else rule.mixed
    partly = cos.shape[-1] < states[0].shape[-1]
    if rotation is None or cos.requires_grad or sin.requires_grad or (partly and not rule.in_part):
        return own(*args, **kwargs)
    if heads_at == 2:
        states = [x.transpose(1, 2) for x in states]
    # a call of one tensor turns no other heads beside it
    q, k = states if rule.together else (states[0], states[0][:, :0])
    cos, sin = (_table(table, rotation) for table in (cos, sin))
    if misfit(q, k, cos, sin, rotation):
        return own(*args, **kwargs)
    turned = rotary(q, k, cos, sin, rotation)
    q, k = (x.transpose(1, 2) for x in turned) if heads_at == 2 else turned
    return (q, k) if rule.together else q


def _table(table: Tensor, rotation: Rotation) -> Tensor:
    """The entries that the function reads: all, or those of its first half, once a pair."""
    return table[..., : table.shape[-1] // 2] if rotation.per_pair else table


@cache
def _rule_of(own: Turn) -> RotaryRule | None:
    """The rule by which the op gives own's bits."""
    for together in (True, False):
        by_types = {}
        for table in (torch.bfloat16, torch.float32):
            types = ((torch.bfloat16, table), (torch.float32, torch.float32))
            agrees = (r for r in _ROTATIONS if all(_agrees(own, r, together, 8, *both) for both in types))
            by_types[table] = next(agrees, None)
        found = {table: rotation for table, rotation in by_types.items() if rotation is not None}
        if found:
            in_part = all(_agrees(own, r, together, 4, torch.bfloat16, table) for table, r in found.items())
            return RotaryRule(together, in_part, *by_types.values())
    return None


def _agrees(
    own: Turn, rotation: Rotation, together: bool, columns: int, dtype: torch.dtype, table_dtype: torch.dtype
) -> bool:
    """Whether the op gives own's bits on heads of 8 columns, of which so many are turned."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 3, 8, generator=generator).to(dtype) for heads in (2, 1))
    # no two entries alike, so that each must be read at its place
    cos, sin = torch.randn(2, 2, 3, columns, generator=generator).to(table_dtype)
    read_cos, read_sin = _table(cos, rotation), _table(sin, rotation)
    if misfit(q, k, read_cos, read_sin, rotation):
        return False
    try:
        with torch.no_grad(), torch.random.fork_rng([]), torch.autocast("cpu", enabled=False):
            made = own(q, k, cos, sin) if together else [own(x, cos, sin) for x in (q, k)]
    except Exception as error:  # any code of a model may fail on a trial, in any way
        logger.debug("%s was tried and failed", own, exc_info=error)
        return False
    if not isinstance(made, tuple | list) or len(made) != 2:
        return False
    ours = rotary(q, k, read_cos, read_sin, rotation)
    return all(
        isinstance(its, Tensor) and its.dtype == mine.dtype and torch.equal(its, mine)
        for its, mine in zip(made, ours, strict=True)
    )
