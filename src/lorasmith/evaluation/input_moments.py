"""The second moments of what layers are fed by a model at work on some text."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from lorasmith.data import Batch
from lorasmith.evaluation.evaluating import evaluating
from lorasmith.quantized import Moments


def input_moments(
    model: nn.Module, layers: Mapping[str, tuple[nn.Module, int]], batches: Iterable[Batch]
) -> dict[str, Moments]:
    """The moments of the inputs of layers, by their names, over the tokens of batches (on the model's device).

    layers has (module, in_features). Padding is left out. Layers that are handed the same tensor (query, key and value)
    get the same moments, which then exist once.
    """
    watch = _Watch(layers)
    with evaluating(model), ExitStack() as hooks:
        for name, (module, _) in layers.items():
            hooks.callback(module.register_forward_pre_hook(watch.hook(name)).remove)
        for batch in batches:
            watch.begin(batch)
            model(**batch.model_inputs())
    return watch.moments


class _Watch:
    """Hooks that count inputs in, and what they have to know of the batch under way."""

    def __init__(self, layers: Mapping[str, tuple[nn.Module, int]]) -> None:
        self.layers = layers
        self.moments: dict[str, Moments] = {}
        self.owners: set[str] = set()
        self.mask: Tensor | None = None
        self.latest: tuple[Tensor, str] | None = None

    def begin(self, batch: Batch) -> None:
        self.mask = None if batch.attention_mask is None else batch.attention_mask.bool()
        self.latest = None

    def hook(self, name: str) -> Any:
        def count(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._count(name, arguments[0])

        return count

    def _count(self, name: str, x: Tensor) -> None:
        shared = self.latest is not None and self.latest[0] is x
        if name not in self.moments:
            if shared and self.latest is not None:
                self.moments[name] = self.moments[self.latest[1]]
            else:
                self.moments[name] = Moments(self.layers[name][1], x.device)
                self.owners.add(name)
        if name in self.owners:
            self.moments[name].add(self._unpadded(x))
        self.latest = (x, name)

    def _unpadded(self, x: Tensor) -> Tensor:
        mask = self.mask
        return x[mask] if mask is not None and x.shape[:-1] == mask.shape else x
