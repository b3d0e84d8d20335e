"""Giving an attached LoRA adapter the weights of another one, in place: no tensor moves and no number is replaced.

A compiled model holds the addresses of tensors and, as constants, the numbers that it saw; what it does not hold are
the values. So the scaling of the new adapter goes into its B, relative to the scaling that stands there, and a lower
rank leaves zeros.
"""

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor, nn

from lorasmith.attach.adapters import KEY_PREFIX, Adapters, adapters_of
from lorasmith.attach.class_names import name_classes_
from lorasmith.attach.content import AdapterContent
from lorasmith.attach.updates import CARRIED_FIELDS
from lorasmith.errors import AttachError
from lorasmith.methods import Site
from lorasmith.methods.lora import LoraConfig, LoraSite
from lorasmith.methods.lora.conv import LoraConv
from lorasmith.methods.lora.dora import DoraSite
from lorasmith.methods.lora.embedding import LoraEmbedding
from lorasmith.methods.lora.linear import LoraLinear

# the axis of the rank, by tensor; a tensor without one must have the shape of the one that it replaces
_RANK_AXIS = {"lora_A.weight": 0, "lora_B.weight": 1, "lora_embedding_A.weight": 0, "lora_embedding_B.weight": 1}
# what the scaling multiplies
_SCALED = {"lora_B.weight", "lora_B.bias", "lora_embedding_B.weight"}


# sites that are their tensors and a scaling
_PLAIN_UPDATES = (LoraLinear, LoraEmbedding, LoraConv)


def widen_(model: nn.Module, rank: int) -> None:
    """Give every LoRA adapter of model this rank with zeros behind its own, and the scaling 1; its effect stays.

    Tensors move: do this before compiling. The configs say what there is now, so that it can be saved. Raises
    AttachError for a model without LoRA, and for a rank below one that is there.
    """
    book = adapters_of(model)
    names = [name for name, config in book.configs.items() if isinstance(config, LoraConfig)]
    if not names:
        raise AttachError("the model has no LoRA adapter; load the first one before you prepare for swapping")
    for name in names:
        for path, (update, _) in _updates(book, name).items():
            if update.rank > rank:
                raise AttachError(f"{path} of {name!r} has rank {update.rank}, above target_rank={rank}; raise it")
            if _grouped(update):
                raise AttachError(f"{path} is a convolution with groups, whose ranks belong to them; exclude it")
    for name in names:
        for update, _ in _updates(book, name).values():
            _widen_(update, rank)
        config = book.configs[name]
        assert isinstance(config, LoraConfig)
        config.r, config.lora_alpha, config.use_rslora = rank, rank, False
        config.rank_pattern, config.alpha_pattern = {}, {}


@torch.no_grad()
def _widen_(site: LoraSite, rank: int) -> None:
    for slot, child in site.named_children():
        for kind, parameter in list(child.named_parameters(recurse=False)):
            tensor = f"{slot}.{kind}"
            scaled = parameter * site.scaling if tensor in _SCALED else parameter
            axis = _RANK_AXIS.get(tensor)
            value = scaled if axis is None else _padded(scaled, axis, rank)
            setattr(child, kind, nn.Parameter(value.detach().clone(), parameter.requires_grad))
        if slot in ("lora_A", "lora_B"):
            # what the module prints of itself
            side, unit = "out" if slot == "lora_A" else "in", "features" if isinstance(child, nn.Linear) else "channels"
            setattr(child, f"{side}_{unit}", rank)
    site.rank, site.scaling = rank, 1.0


def swap_(model: nn.Module, content: AdapterContent, name: str) -> None:
    """Copy another LoRA adapter's tensors over those of the adapter name, scaled to have its effect.

    The config stays: with the tensors as they are now it says the truth. Modules that the new adapter leaves alone get
    zeros. Raises AttachError, before anything is changed, for another method or variant, for modules or a rank that do
    not fit into what is there, and for an adapter that is merged.
    """
    book = adapters_of(model)
    book.check(name)
    _refuse_unlike(book, name, content)
    places = book.tensors(name)
    found = {f"{KEY_PREFIX}{path}": own for path, own in _updates(book, name).items()}
    sites = {prefix: update for prefix, (update, _) in found.items()}
    slots = {f"{prefix}.{key}": (prefix, slot) for prefix, (_, keys) in found.items() for slot, key in keys.items()}
    state = {key: value for key, value in content.state.items() if not _is_own_base(model, key, value)}
    _refuse_misfits(state, places, slots, sites)
    config = content.config
    assert isinstance(config, LoraConfig)
    with torch.no_grad():
        for key, place in places.items():
            value = state.get(key)
            prefix, slot = slots.get(key, ("", ""))
            if value is None:
                place.zero_()
                continue
            if slot in _SCALED:
                ratio = config.scaling_of(prefix.removeprefix(KEY_PREFIX)) / sites[prefix].scaling
                # a ratio of one leaves every bit
                value = value if ratio == 1 else value.to(place) * ratio
            axis = _RANK_AXIS.get(slot)
            place.copy_(value if axis is None else _padded(value, axis, place.shape[axis]))
    if content.class_names and name in book.active:
        name_classes_(model, content.class_names)


def _is_own_base(model: nn.Module, key: str, value: Tensor) -> bool:
    """Whether key is the base's embedding, which files of adapted embeddings hold too, and value the model's own."""
    path = key.removeprefix(KEY_PREFIX).removesuffix(".weight")
    if not path.endswith(".base_layer"):
        return False
    weight = model.get_submodule(path)._parameters.get("weight")
    return weight is not None and weight.shape == value.shape and torch.equal(weight, value.to(weight))


def _updates(book: Adapters, name: str) -> dict[str, tuple[LoraSite, dict[str, str]]]:
    """The update and the file key of each tensor, by module; AttachError for a site that is more than these say."""
    found = {}
    for path, site in book.sites(name):
        update = site.update if isinstance(site, DoraSite) else site
        if type(update) not in _PLAIN_UPDATES:
            raise AttachError(f"{path}: {site.describe()} cannot be swapped in place; load a second adapter")
        assert isinstance(update, LoraSite)
        found[path] = (update, site.file_keys())
    return found


def _grouped(site: Site) -> bool:
    return site.layer.conv is not None and site.layer.conv.groups > 1


def _padded(value: Tensor, axis: int, size: int) -> Tensor:
    if value.shape[axis] == size:
        return value
    shape = list(value.shape)
    shape[axis] = size - value.shape[axis]
    return torch.cat([value, value.new_zeros(shape)], axis)


def _refuse_unlike(book: Adapters, name: str, content: AdapterContent) -> None:
    old, new = book.configs[name], content.config
    if not isinstance(old, LoraConfig) or not isinstance(new, LoraConfig):
        raise AttachError(f"{new.METHOD} over {old.METHOD}: only LoRA is swapped in place; load a second adapter")
    differing = [
        field.name
        for field in fields(new)
        if field.name not in CARRIED_FIELDS and getattr(old, field.name) != getattr(new, field.name)
    ]
    if differing or "none" not in (old.bias, new.bias):
        listed = ", ".join(f"{field}={getattr(new, field)!r}" for field in differing or ["bias"])
        raise AttachError(f"the new adapter has {listed}, unlike {name!r}; load it as a second adapter")
    if any(name in adapted.merged for _, adapted in book.adapted()):
        raise AttachError(f"adapter {name!r} is merged into the base; unmerge it first")


def _refuse_misfits(
    state: Mapping[str, Tensor],
    places: Mapping[str, Tensor],
    slots: Mapping[str, tuple[str, str]],
    sites: Mapping[str, LoraSite],
) -> None:
    problems = [f"unexpected {key}" for key in state if key not in places]
    touched = {slots[key][0] for key in state if key in slots}
    plain = _RANK_AXIS.keys() | _SCALED
    for key, place in places.items():
        prefix, slot = slots.get(key, ("", ""))
        if key not in state:
            # zeros are no update, of a module that is left alone as a whole
            if slot not in plain or prefix in touched:
                problems.append(f"missing {key}")
            continue
        axis = None if prefix and _grouped(sites[prefix]) else _RANK_AXIS.get(slot)
        if not _fits(state[key].shape, place.shape, axis):
            problems.append(f"{key} has shape {tuple(state[key].shape)}, the place {tuple(place.shape)}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise AttachError(
            f"the adapter does not fit into the one that is there: {'; '.join(problems[:5])}{more}; for a higher rank "
            "call prepare_model_for_compiled_hotswap with target_rank first"
        )


def _fits(shape: torch.Size, place: torch.Size, axis: int | None) -> bool:
    if len(shape) != len(place):
        return False
    return all(size == there or (i == axis and size < there) for i, (size, there) in enumerate(zip(shape, place)))
