"""A wrapper's forward under the signature of the model inside."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lorasmith.compat.adapter_names import named_rows


class BaseSignature:
    """`forward` with the signature of the base model's: Trainer drops the data columns that it does not find there."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        if instance is None:
            return self.function
        bound = functools.partial(self.function, instance)
        bound.__signature__ = inspect.signature(instance.base_model.model.forward)  # type: ignore[attr-defined]
        return bound


def forward(
    self: Any, *args: Any, labels: Tensor | None = None, adapter_names: Sequence[str] | None = None, **kwargs: Any
) -> Any:
    """What the adapted model returns; adapter_names gives each row an adapter of its own, "__base__" none."""
    if labels is not None:
        kwargs["labels"] = labels
    if adapter_names is None:
        return self.base_model(*args, **kwargs)
    with named_rows(self.get_base_model(), adapter_names, args, kwargs):
        return self.base_model(*args, **kwargs)
