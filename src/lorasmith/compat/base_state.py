"""The base model's own tensors under its own names, adapters or not."""

from collections.abc import Mapping

from torch import Tensor, nn

from lorasmith.attach import SavedModule, adapters_of
from lorasmith.attach.prompted import PromptEncoder
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.compat.load_result import LoadResult
from lorasmith.compat.peft_model import bare_model
from lorasmith.errors import ModelError


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The base model's state by its own keys, as the base is without adapters.

    Tensors that an adapter trains in place and, unlike PEFT's, weights that one is merged into have their originals.
    """
    model = bare_model(model)
    state = model.state_dict()
    originals = {p.data_ptr(): value for p, value in adapters_of(model).originals().items()}
    keys = _keys_of_base(model)
    return {key: originals.get(state[inside].data_ptr(), state[inside]) for key, inside in keys.items()}


def set_base_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> LoadResult:
    """Load the base model's tensors by its own keys; adapters stay as they are, those that are merged unmerged.

    Raises ModelError, if strict, for missing and unexpected keys, before anything is loaded.
    """
    model = bare_model(model)
    keys = _keys_of_base(model)
    missing = [key for key in keys if key not in state_dict]
    unexpected = [key for key in state_dict if key not in keys]
    if strict and (missing or unexpected):
        listed = [f"missing {key}" for key in missing] + [f"unexpected {key}" for key in unexpected]
        raise ModelError(f"the state does not fit the base model: {'; '.join(listed[:5])}")
    known = {keys[key]: value for key, value in state_dict.items() if key in keys}
    with adapters_of(model).disabled():
        model.load_state_dict(known, strict=False)
        originals = adapters_of(model).base_tensors.originals
        for parameter in originals:
            originals[parameter] = parameter.detach().clone()
    return LoadResult(missing, unexpected)


def _keys_of_base(model: nn.Module) -> dict[str, str]:
    """The key inside the adapted model of every tensor of the base, by its key in the base."""
    # from the innermost out: wrappers of parameters nest
    wrappers = [
        (f"{path}.", "original_module." if isinstance(module, SavedModule) else "base_layer.")
        for path, module in reversed(list(model.named_modules()))
        if isinstance(module, SiteHolder | SavedModule)
    ]
    added = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, PromptEncoder))
    keys = {}
    for inside in model.state_dict():
        key = None if added and inside.startswith(added) else _own_key(inside, wrappers)
        if key is not None:
            keys[key] = inside
    return keys


def _own_key(inside: str, wrappers: list[tuple[str, str]]) -> str | None:
    """The key that a tensor has in the base; None for a tensor that an adapter added."""
    key = inside
    for path, step in wrappers:
        if not key.startswith(path):
            continue
        if not key.startswith(path + step):
            return None
        key = path + key.removeprefix(path + step)
    return key
