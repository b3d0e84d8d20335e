"""A wrapper's forward under the signature of the model inside."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor


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


def forward(self: Any, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
    """What the adapted model returns."""
    if labels is not None:
        kwargs["labels"] = labels
    return self.base_model(*args, **kwargs)
