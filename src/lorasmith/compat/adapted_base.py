"""The level between wrapper and model that PEFT has."""

from typing import Any

from torch import Tensor, nn

from lorasmith.attach import adapters_of, merge_and_unload


class AdaptedBase(nn.Module):
    """The level between wrapper and model that PEFT has: `base_model.model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the adapted model returns, its loss with the penalties of the methods that train (AdaLoRA's)."""
        output = self.model(*args, **kwargs)
        for part in adapters_of(self.model).training_parts().values():
            penalty = part.penalty() if isinstance(getattr(output, "loss", None), Tensor) else None
            if penalty is not None:
                output.loss = output.loss + penalty
        return output

    def update_and_allocate(self, global_step: int) -> None:
        """Let methods with a part in training act (AdaLoRA share out ranks): after backward, before zero_grad."""
        for part in adapters_of(self.model).training_parts().values():
            part.after_step(global_step, None)

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
