"""Adapter files in layouts that PEFT had before."""

import logging
from collections.abc import Mapping

from torch import Tensor

from lorasmith.attach.adapters import Adapters

log = logging.getLogger(__name__)


def from_older_layouts(book: Adapters, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """state by PEFT's keys, with the tensors of sites whose layout has changed turned into today's.

    A file has one layout, so that a site for whose tensors both fit (a stack of square matrices) goes with the others;
    where no other decides, today's is taken.
    """
    found = dict(state)
    sites = [(site, keys) for site, keys in book.file_sites(name) if all(key in found for key in keys.values())]
    tensors = [{own: found[key] for own, key in keys.items()} for _, keys in sites]
    verdicts = [site.is_older(own) for (site, _), own in zip(sites, tensors, strict=True)]
    if not any(verdicts):
        return found
    log.warning("adapter %s was saved before peft 0.19, with the axes of experts exchanged; they are put right", name)
    for (site, keys), own, verdict in zip(sites, tensors, verdicts, strict=True):
        if verdict is not False:
            found |= {keys[key]: value for key, value in site.from_older(own).items()}
    return found
