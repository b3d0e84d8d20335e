"""Layers of a model that share one weight: an embedding and the head above it."""

from torch import nn

from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import bare, base_modules
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.methods import Site, layer_spec


def tied_groups(model: nn.Module) -> list[list[str]]:
    """Paths of the layers that share a weight with others, in groups, the embedding first."""
    groups: dict[int, list[str]] = {}
    embeddings = set()
    for path, module in base_modules(model):
        layer = bare(module.original_module if isinstance(module, SavedModule) else module)[0]
        weight, spec = layer._parameters.get("weight"), layer_spec(layer, path)
        if weight is not None and spec is not None:
            groups.setdefault(id(weight), []).append(path)
            embeddings |= {path} if spec.kind == "embedding" else set()
    tied = [paths for paths in groups.values() if len(paths) > 1]
    return [sorted(paths, key=lambda path: path not in embeddings) for paths in tied]


def move_together(first: nn.Module, other: nn.Module, adapters: list[str]) -> bool:
    """Whether these adapters change two layers that share a weight in the same way."""
    if isinstance(first, SavedModule) and isinstance(other, SavedModule):
        return first.acting._parameters.get("weight") is other.acting._parameters.get("weight")
    if not isinstance(first, SiteHolder) or not isinstance(other, SiteHolder):
        return False
    names = [name for name in adapters if name in first.sites or name in other.sites]
    return all(
        name in first.sites and name in other.sites and _shares(other.sites[name], first.sites[name]) for name in names
    )


def _shares(site: Site, first: Site) -> bool:
    return any(partner is first for partner in site.partners)
