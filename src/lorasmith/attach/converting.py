"""Any adapter that is a change of weights as a LoRA: in each module the nearest update of a rank."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lorasmith.attach.adapters import KEY_PREFIX, adapters_of
from lorasmith.attach.content import AdapterContent
from lorasmith.attach.files import content_of
from lorasmith.attach.selection import shortest_names
from lorasmith.attach.updates import Update, matrix_of, update_of, written
from lorasmith.errors import AttachError
from lorasmith.methods import dense_weight
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.lora.factors import decompose


@torch.no_grad()
def as_lora(model: nn.Module, name: str, rank: int | float) -> AdapterContent:
    """The LoRA adapter nearest to the adapter name of model; modules trained whole come along.

    rank is the same for every module, or the share in (0, 1] of the squared singular values that each keeps. Raises
    AttachError for an adapter that is no change of weights, and for an impossible rank.
    """
    share = isinstance(rank, float)
    if not (0 < rank <= 1 if share else rank >= 1):
        raise AttachError(f"rank={rank} must be a whole number from 1 on, or a share in (0, 1]")
    book = adapters_of(model)
    if not book.sites(name):
        raise AttachError(f"adapter {name!r} ({book.configs[name].METHOD}) adapts no module; it has no LoRA")
    if book.base_tensors.keys.get(name):
        raise AttachError(f"adapter {name!r} trains tensors of the base too, which a LoRA does not hold")
    updates = dict(_updates(model, name, rank))
    content = content_of(book, name)
    trained = [f"{KEY_PREFIX}{path}." for path, saved in book.saved_modules() if name in saved.modules_to_save]
    whole = {key: value for key, value in content.state.items() if key.startswith(tuple(trained))}
    config = content.config
    plain = LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        modules_to_save=config.modules_to_save,
    )
    made = written(plain, updates, shortest_names(list(updates), model))
    return AdapterContent(made.config, {**made.state, **whole}, content.class_names)


def _updates(model: nn.Module, name: str, rank: int | float) -> Iterator[tuple[str, Update]]:
    for path, adapted in adapters_of(model).adapted():
        if name not in adapted.sites:
            continue
        site = adapted.sites[name]
        reason = site.refuses_merge()
        if site.layer.kind == "parameter":
            reason = f"{site.layer.path} is a bare parameter"
        if reason is not None:
            raise AttachError(f"{path}: {reason} and has no LoRA; keep the adapter")
        change = site.delta(dense_weight(adapted.base_layer, torch.float32))
        parts = decompose(matrix_of(change, site.layer.kind))
        kept = _rank_of_share(parts.s, rank) if isinstance(rank, float) else rank
        bias = site.delta_bias(adapted.bias)
        update = update_of(parts.leading(kept), change.shape, site.layer.kind)
        yield path, update if bias is None else Update(update.a, update.b, bias.float(), 1.0, update.embedding)


def _rank_of_share(singular_values: Tensor, share: float) -> int:
    """The smallest rank whose singular values have this share of the sum of all squares."""
    sums = singular_values.double().square().cumsum(0)
    return min(int(torch.searchsorted(sums, share * sums[-1])) + 1, len(sums))
