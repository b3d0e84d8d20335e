"""EVA on a model: watch what the adapted layers read, share the ranks, and let A begin at the principal directions.

N positions, I in_features, K directions, R rank. Source: arXiv 2410.07170, section 3, algorithm 1.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorasmith.attach.adapters import Adapters
from lorasmith.attach.base_at_work import base_watched
from lorasmith.attach.selection import shortest_names
from lorasmith.errors import AttachError
from lorasmith.methods import SiteMethod, method_of
from lorasmith.methods.inits import EvaConfig, IncrementalSvd, shared_ranks
from lorasmith.methods.lora import LoraConfig, LoraSite

log = logging.getLogger(__name__)

B = TypeVar("B")
# picks the rows [N, I] that count from what the layer at a path read
Rows = Callable[[Tensor, str], Tensor]


@dataclass
class _Layer:
    """What is known of the inputs of one layer, and of the layers after it that read the same (members)."""

    members: list[str]
    svd: IncrementalSvd | None = None
    # rows [N, I] of batches that were too small to be taken in
    waiting: Tensor | None = None
    found: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def take(self, rows: Tensor, components: int, tau: float) -> None:
        """Take in rows [N, I]; fewer than there are directions, as of a pooler, wait for those of the next batch."""
        components = min(components, rows.shape[1])
        rows = rows if self.waiting is None else torch.cat([self.waiting, rows])
        self.waiting = None if rows.shape[0] >= components else rows.clone()
        if self.waiting is not None:
            return
        if self.svd is None:
            self.svd = IncrementalSvd(rows.shape[1], components, rows.device)
        before = self.svd.directions if self.svd.rows else None
        self.svd.add(rows)
        if before is not None:
            self.found = ((before * self.svd.directions).sum(1).abs() >= tau).cpu()

    def done(self, ranks: Mapping[str, int]) -> bool:
        """Whether as many directions stay where they are as any of its layers gets."""
        wanted = max(ranks[path] for path in self.members)
        return wanted == 0 or (len(self.found) > 0 and bool(self.found[:wanted].all()))


class InputWatch:
    """Watches what the linear layers of one adapter read while batches run through the bare base.

    Raises AttachError for an adapter that does not begin by EVA.
    """

    def __init__(self, book: Adapters, name: str) -> None:
        book.check(name)
        config = book.configs[name]
        if not isinstance(config, LoraConfig) or config.eva_config is None:
            raise AttachError(f'adapter {name!r} does not begin by EVA; attach a LoRA with init_lora_weights="eva"')
        self.book, self.settings = book, config.eva_config
        self.ranks = {path: site.rank for path, site in linear_sites(book, name).items()}
        self.most = {path: round(rank * self.settings.rho) for path, rank in self.ranks.items()}
        # by the path of the first of those that read the same
        self.layers: dict[str, _Layer] = {}
        self.batches = 0
        # each layer's share of the ranks as far as is known
        self._shares: dict[str, int] | None = None
        self._rows: Rows | None = None
        self._last: tuple[Tensor, _Layer] | None = None

    @torch.no_grad()
    def run(self, batches: Iterable[B], forward: Callable[[B], Any], rows_of: Callable[[B], Rows]) -> bool:
        """Run batches through the base until the directions stay where they are; False where they end before."""
        with base_watched(self.book, self.ranks, self._see):
            for batch in batches:
                self.batches += 1
                self._rows, self._last = rows_of(batch), None
                forward(batch)
                self._shares = self._shared()
                if self._shares is not None and all(layer.done(self._shares) for layer in self.layers.values()):
                    return True
        return False

    @property
    def seen_enough(self) -> bool:
        """Whether every layer that was run has read as many positions as directions are asked for."""
        return self._shares is not None

    def _see(self, path: str, x: Tensor, y: Tensor) -> None:
        # queries, keys and values read one tensor, one after the other
        if self._last is not None and self._last[0] is x:
            members = self._last[1].members
            if path not in members:
                members.append(path)
            return
        layer = self.layers.setdefault(path, _Layer([path]))
        self._last = (x, layer)
        # what stands still is left alone, unless other shares ask for more directions of it
        if self._shares is not None and layer.done(self._shares):
            return
        assert self._rows is not None
        layer.take(self._rows(x, path), self.most[path], self.settings.tau)

    def _shared(self) -> dict[str, int] | None:
        """Each layer's share of the ranks; None as long as one has not seen enough."""
        explained: dict[str, Tensor] = {}
        for layer in self.layers.values():
            if layer.svd is None:
                return None
            share = layer.svd.explained()
            explained |= {path: share[: self.most[path]] for path in layer.members}
        seen = [path for path in self.ranks if path in explained]
        if not seen:
            return None
        return shared_ranks({path: explained[path] for path in seen}, sum(self.ranks[path] for path in seen))

    def directions(self) -> dict[str, Tensor]:
        """A [R, I] by layer, R its share of the ranks, for the layers that were run.

        Raises AttachError where a layer read fewer positions than directions are asked for.
        """
        ranks = self._shared()
        if ranks is None:
            raise AttachError(
                f"the batches hold fewer positions that count than the {max(self.most.values())} directions that are "
                "asked for; use more batches, a smaller r or rho, or use_label_mask=False"
            )
        found = {path: self._a(layer, ranks[path]) for layer in self.layers.values() for path in layer.members}
        return {path: found[path] for path in ranks}

    def _a(self, layer: _Layer, rank: int) -> Tensor:
        assert layer.svd is not None
        a_RI = layer.svd.directions[:rank].clone()
        return a_RI / layer.svd.singular[:rank, None].sqrt() if self.settings.whiten else a_RI


def token_rows(inputs: Mapping[str, Any], settings: EvaConfig) -> Rows:
    """The rows of positions that are no padding and, if settings says so, have a label."""
    kept = torch.ones_like(inputs["input_ids"]).bool()
    mask, labels = inputs.get("attention_mask"), inputs.get("labels")
    if isinstance(mask, Tensor) and mask.shape == kept.shape:
        kept &= mask.bool()
    if settings.use_label_mask and isinstance(labels, Tensor) and labels.shape == kept.shape:
        kept &= labels != settings.label_mask_value

    def rows(x: Tensor, path: str) -> Tensor:
        # what a classifier's head reads has no positions
        return x[kept] if x.shape[:-1] == kept.shape else x.reshape(-1, x.shape[-1])

    return rows


@torch.no_grad()
def begin_at_(book: Adapters, name: str, directions: Mapping[str, Tensor]) -> None:
    """Let A of a LoRA begin at directions [R, I] by layer, and B at zero; a layer of rank 0 loses this adapter.

    Linear layers that directions lacks keep what they have. The adapter's config states the new ranks and targets.
    """
    old = book.configs[name]
    assert isinstance(old, LoraConfig)
    missing = [path for path in linear_sites(book, name) if path not in directions]
    if missing:
        log.warning("no data reached %s; there the start stays the plain one", ", ".join(missing))
    paths = [path for path, _ in book.sites(name)]
    ranks = {path: len(a_RI) for path, a_RI in directions.items()}
    config = old.with_ranks(ranks, paths)
    kept = [path for path in paths if ranks.get(path, 1)]
    config.target_modules = shortest_names(kept, book.model)
    book.configs[name] = config
    modules = dict(book.adapted())
    for path, a_RI in directions.items():
        _begin_layer_at(book, name, path, modules[path].sites[name], a_RI)
    # new tensors train like the old ones
    book.activate(book.active)


def _begin_layer_at(book: Adapters, name: str, path: str, old: nn.Module, a_RI: Tensor) -> None:
    adapted = dict(book.adapted())[path]
    assert isinstance(old, LoraSite)
    adapted.remove(name)
    if not len(a_RI):
        if not adapted.sites:
            book.model.set_submodule(path, adapted.base_layer)
        return
    config = book.configs[name]
    method = method_of(config)
    assert isinstance(method, SiteMethod) and isinstance(config, LoraConfig)
    fresh = method.site(config, old.layer, old.get_parameter("lora_A.weight").dtype == torch.float32, None)
    fresh.get_parameter("lora_A.weight").copy_(a_RI)
    adapted.add(name, fresh.train(old.training))
    adapted.active = list(book.active)


def linear_sites(book: Adapters, name: str) -> dict[str, LoraSite]:
    """The adapter's sites beside linear layers, by path."""
    sites = ((path, site) for path, site in book.sites(name) if site.layer.kind == "linear")
    return {path: site for path, site in sites if isinstance(site, LoraSite)}
