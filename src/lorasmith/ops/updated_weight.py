"""A weight with a low-rank update, W + s L R, in the place of a module's parameter.

A module that multiplies by a bare parameter (a stack of experts) knows nothing of adapters, so the parameter itself is
replaced while its forward runs. Every product with it is then W's own plus two thin ones, and only an operation that is
no product makes the sum dense. So a step keeps x and the thin h, as beside a linear layer, where adding the update to W
first would keep a second W and its whole gradient for every layer.

E experts, M and N the axes of one matrix, R rank, S rows; L [E, M, R] and R [E, R, N], or without E.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from lorasmith.errors import AttachError

# the products of grouped rows want rows of whole 16 bytes
_ALIGNMENT = 16


class UpdatedWeight(Tensor):
    """base [..., M, N] + scaling x left [..., M, R] @ right [..., R, N]; base may be updated itself.

    The tensor's own storage is empty: what it is asked for is answered by its parts. Gradients reach left and right.
    """

    base: Tensor
    left: Tensor
    right: Tensor
    scaling: float

    @classmethod
    def of(cls, base: Tensor, left: Tensor, right: Tensor, scaling: float) -> Self:
        """The sum of these parts."""
        # of no size and no device: it must never be read, and a plan's fake tensors are not to see it
        with _disable_current_modes():
            made: Self = Tensor._make_subclass(cls, torch.empty(0, device="meta"))
        made.base, made.left, made.right, made.scaling = base, left, right, scaling
        return made

    def dense(self) -> Tensor:
        """The sum as a plain tensor in the type of base, added in the wider of the types and rounded once."""
        base = dense(self.base)
        wide = torch.promote_types(base.dtype, self.left.dtype)
        product = self.left.to(wide) @ self.right.to(wide)
        return torch.add(base, product, alpha=self.scaling).to(base.dtype)

    def mapped(self, base: Tensor, change: Callable[[Tensor], Tensor]) -> "UpdatedWeight":
        """The sum over base with both factors changed."""
        return UpdatedWeight.of(base, change(self.left), change(self.right), self.scaling)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        _refuse_writing(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if func in _PROPERTIES:
                return func(args[0].base, *args[1:], **kwargs)
        rule = _RULES.get(func) or (_behind if _is_grouped_product(func) else None)
        # a rule looks for the others at their places
        if rule is not None and kwargs.keys() <= _NAMED:
            answer = rule(func, *args, **kwargs)
            if answer is not NotImplemented:
                return answer
        return func(*tree_map(dense, args), **tree_map(dense, kwargs))


def _refuse_writing(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise AttachError for an operation that would write into an updated weight: nobody keeps that sum."""
    name = getattr(func, "__name__", "")
    writes = (name.endswith("_") and not name.endswith("__")) or name in _WRITERS
    written = [kwargs.get("out"), *(args[:1] if writes else ())]
    if any(isinstance(one, UpdatedWeight) for one in written):
        raise AttachError(
            f"{name} would write into a weight that an adapter changes, and be lost; the module's code must make a new "
            "tensor, or merge the adapter first"
        )


def dense(value: Any) -> Any:
    """value, a plain tensor where it was an updated weight."""
    return value.dense() if isinstance(value, UpdatedWeight) else value


def _behind(func: Callable[..., Any], x: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    """x W, of one matrix, of a batch of them or of grouped rows: x W + (s x L) R."""
    if not isinstance(weight, UpdatedWeight) or isinstance(x, UpdatedWeight):
        return NotImplemented
    left, right = _aligned(weight.left.to(x.dtype), weight.right.to(x.dtype))
    thin = func(x, left, *args, **kwargs) * weight.scaling
    return func(x, weight.base, *args, **kwargs) + func(thin, right, *args, **kwargs)


def _grouped(func: Callable[..., Any], x: Any, weight: Any, *, bias: Any = None, **kwargs: Any) -> Any:
    """Grouped rows of x by the experts that they chose; a bias would count in each of the products."""
    return NotImplemented if bias is not None else _behind(func, x, weight, **kwargs)


def _before(func: Callable[..., Any], weight: Any, x: Any) -> Any:
    """W x: W x + L (s R x)."""
    if not isinstance(weight, UpdatedWeight):
        return _behind(func, weight, x)
    if isinstance(x, UpdatedWeight):
        return NotImplemented
    thin = func(weight.right.to(x.dtype), x) * weight.scaling
    return func(weight.base, x) + func(weight.left.to(x.dtype), thin)


def _linear(func: Callable[..., Any], x: Any, weight: Any, bias: Any = None) -> Any:
    """x W^T + b: the thin products take R^T, then L^T."""
    if not isinstance(weight, UpdatedWeight) or isinstance(x, UpdatedWeight):
        return NotImplemented
    thin = functional.linear(x, weight.right.to(x.dtype)) * weight.scaling
    return functional.linear(x, weight.base, bias) + functional.linear(thin, weight.left.to(x.dtype))


def _item(func: Callable[..., Any], weight: UpdatedWeight, index: Any) -> Any:
    """Some experts of a stack; any other index is of the dense sum."""
    whole = isinstance(index, int | slice) or (isinstance(index, Tensor) and index.dim() <= 1)
    return (
        weight.mapped(weight.base[index], lambda part: part[index]) if whole and _is_stack(weight) else NotImplemented
    )


def _transposed(func: Callable[..., Any], weight: UpdatedWeight, *axes: int, **by_name: int) -> Any:
    """The matrices transposed: W^T + s R^T L^T."""
    count, axes = weight.base.dim(), (*axes, *by_name.values())
    named = {axis % count for axis in axes} if axes else {count - 2, count - 1}
    # the bare T of a stack reverses all axes
    if named != {count - 2, count - 1} or (func is Tensor.T.__get__ and count != 2):  # type: ignore[attr-defined]
        return NotImplemented
    return UpdatedWeight.of(weight.base.mT, weight.right.mT, weight.left.mT, weight.scaling)


def _cast(func: Callable[..., Any], weight: UpdatedWeight, *args: Any, **kwargs: Any) -> Any:
    """Another type or device, for the parts alike."""
    return weight.mapped(func(weight.base, *args, **kwargs), lambda part: func(part, *args, **kwargs))


def _same(func: Callable[..., Any], weight: UpdatedWeight, *args: Any, **kwargs: Any) -> Any:
    """A layout in memory that the products do not ask for."""
    return weight


def _is_stack(weight: UpdatedWeight) -> bool:
    return weight.base.dim() == 3


def _aligned(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The factors with ranks of zeros behind, so that a stack's rows fill whole units of the kernel's alignment."""
    rank, unit = left.shape[-1], _ALIGNMENT // left.element_size()
    missing = -rank % unit if left.dim() == 3 else 0
    return functional.pad(left, (0, missing)), functional.pad(right, (0, 0, 0, missing))


def _is_grouped_product(func: Callable[..., Any]) -> bool:
    # transformers' own, where torch has none for the device; known only once transformers has registered it
    return str(func).startswith("transformers.grouped_mm_fallback")


# mypy does not know that properties of Tensor are descriptors
_PROPERTIES: frozenset[Any] = frozenset(
    [
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_meta")
    ]
    + [getattr(Tensor, name).__get__ for name in ("is_cuda", "is_leaf", "itemsize", "nbytes", "is_quantized")]
    + [Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.data_ptr, Tensor.is_contiguous]
    + [Tensor.element_size, Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__, Tensor.nelement]
    + [torch.is_floating_point, torch.numel, torch.is_complex]
)
# what writes into a tensor without saying so at the end of its name; a setter writes an attribute, such as data
_WRITERS = frozenset(("__setitem__", "__set__"))
_NAMED = frozenset(
    ("weight", "bias", "offs", "out_dtype", "dim0", "dim1", "dtype", "device", "copy", "non_blocking", "memory_format")
)
_RULES: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    torch._grouped_mm: _grouped,
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm), _before
    ),
    Tensor.__getitem__: _item,
    **dict.fromkeys((Tensor.transpose, torch.transpose, torch.t, Tensor.t), _transposed),
    **dict.fromkeys((Tensor.mT.__get__, Tensor.T.__get__), _transposed),  # type: ignore[attr-defined]
    **dict.fromkeys((Tensor.to, Tensor.float, Tensor.bfloat16, Tensor.half, Tensor.type_as), _cast),
    Tensor.contiguous: _same,
}
