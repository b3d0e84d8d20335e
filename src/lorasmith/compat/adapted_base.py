"""The level between wrapper and model that PEFT has."""

from typing import Any

from torch import nn

from lorasmith.attach import merge_and_unload


class AdaptedBase(nn.Module):
    """The level between wrapper and model that PEFT has: `base_model.model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the adapted model returns."""
        return self.model(*args, **kwargs)

    def merge_and_unload(self, progressbar: bool = False, safe_merge: bool = False) -> nn.Module:
        """The dense model with the active adapters merged."""
        return merge_and_unload(self.model)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)
