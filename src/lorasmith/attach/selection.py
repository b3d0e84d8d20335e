"""Which modules of a model a config means."""

import logging
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorasmith.attach.adapted import Adapted
from lorasmith.attach.adapted_parameter import AdaptedParameter
from lorasmith.attach.prompted import PromptEncoder
from lorasmith.attach.saved_module import SavedModule
from lorasmith.errors import AttachError, nearest
from lorasmith.methods import CLASSIFICATION, INPUT_EMBEDDING, SiteMethod, TargetedConfig, layer_number, matches, named
from lorasmith.models.families import HEADS
from lorasmith.quantized import QuantizedLinear

ALL_LINEAR = "all-linear"

log = logging.getLogger(__name__)


def base_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the base model's modules, without what adapters added; an adapted module yields its wrapper.

    Where wrappers of parameters nest, each is yielded, from the outermost in.
    """
    yield path, module
    if isinstance(module, Adapted | SavedModule):
        return
    while isinstance(module, AdaptedParameter):
        path, module = f"{path}.base_layer", module.base_layer
        if isinstance(module, AdaptedParameter):
            yield path, module
    for name, child in module.named_children():
        if not isinstance(child, PromptEncoder):
            yield from base_modules(child, f"{path}.{name}" if path else name)


def bare(module: nn.Module) -> tuple[nn.Module, str]:
    """The base's own module inside wrappers of sites, and the steps to its tensors, which PEFT's files name too."""
    if isinstance(module, Adapted):
        return module.base_layer, "base_layer."
    steps = ""
    while isinstance(module, AdaptedParameter):
        module, steps = module.base_layer, f"{steps}base_layer."
    return module, steps


def model_type(model: nn.Module) -> str:
    """The transformers name of the model's family, "" for any other model."""
    return model.config.model_type if isinstance(model, PreTrainedModel) else ""


def is_linear(module: nn.Module) -> bool:
    """Whether module is a linear layer of any storage, adapted or not."""
    base = module.base_layer if isinstance(module, Adapted) else module
    return isinstance(base, nn.Linear | Conv1D | QuantizedLinear)


def select(model: nn.Module, config: TargetedConfig, method: SiteMethod) -> list[str]:
    """Paths of the modules that config means, in the model's order.

    Fills in config.target_modules where it leaves the choice to the model type. Raises AttachError, with the nearest
    names, where nothing matches.
    """
    if config.target_modules is None:
        config.target_modules = method.default_targets(model_type(model))
        if config.target_modules is None and config.parameter_names:
            return []
        if config.target_modules is None:
            raise AttachError(
                f"target_modules: no default is known for model type {model_type(model)!r}; "
                f'use "all-linear" or name some of: {", ".join(_linear_names(model))}'
            )
    if config.target_modules == INPUT_EMBEDDING:
        config.target_modules = _input_embedding(model)
    everything = config.target_modules == ALL_LINEAR
    paths = _all_linear(model, config) if everything else _named(model, config)
    paths = [path for path in paths if allowed(path, config)]
    if not paths and not config.parameter_names:
        raise AttachError(_nothing_matches(model, config))
    if everything:
        # as PEFT does, the saved config names what was found
        config.target_modules = shortest_names(paths, model)
    return paths


def _input_embedding(model: nn.Module) -> str:
    """The whole path of the input embedding, as an expression, as PEFT writes it into its files."""
    if not isinstance(model, PreTrainedModel):
        raise AttachError(f"{type(model).__name__} has no known input embedding; name it in target_modules")
    embedding = model.get_input_embeddings()
    return next(path for path, module in base_modules(model) if module is embedding)


def _named(model: nn.Module, config: TargetedConfig) -> list[str]:
    targets = config.target_modules
    paths = [path for path, _ in base_modules(model) if path and matches(path, targets)]
    if paths and not isinstance(targets, str):
        silent = [name for name in targets or [] if not any(named(path, name) for path in paths)]
        if silent:
            known = _linear_names(model)
            log.warning("target_modules that match nothing: %s.%s", ", ".join(silent), nearest(silent[0], known))
    return paths


def _all_linear(model: nn.Module, config: TargetedConfig) -> list[str]:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    classifies = config.task_type in CLASSIFICATION and isinstance(model, PreTrainedModel)
    return [
        path
        for path, module in base_modules(model)
        if is_linear(module)
        and (head is None or module is not head)
        and not (classifies and path.split(".")[0] in HEADS)
    ]


def allowed(path: str, config: TargetedConfig) -> bool:
    """Whether a module at path may be adapted: not excluded, not trained whole, in one of the chosen layers."""
    if matches(path, config.exclude_modules):
        return False
    # a module that is trained whole is not adapted too
    if any(name in _ends(path) for name in config.modules_to_save or []):
        return False
    if config.layer_numbers is None:
        return True
    return layer_number(path, config.layer_lists) in config.layer_numbers


def _ends(path: str) -> set[str]:
    # every run of path components that ends at one of its dots
    parts = path.split(".")
    return {".".join(parts[i:j]) for j in range(1, len(parts) + 1) for i in range(j)}


def _linear_names(model: nn.Module) -> list[str]:
    return sorted({path.rpartition(".")[2] for path, module in base_modules(model) if path and is_linear(module)})


def shortest_names(paths: list[str], model: nn.Module) -> list[str]:
    """The last components of paths where these mean exactly paths, else the whole paths."""
    chosen, names = set(paths), {path.rpartition(".")[2] for path in paths}
    meant = {path for path, _ in base_modules(model) if path and matches(path, names)}
    return sorted(names if meant == chosen else chosen)


def _nothing_matches(model: nn.Module, config: TargetedConfig) -> str:
    wanted = config.target_modules
    first = wanted if isinstance(wanted, str) else next(iter(sorted(wanted or [])), "")
    names = _linear_names(model)
    parts = [f"target_modules={wanted!r} match no module of {type(model).__name__}"]
    if config.exclude_modules or config.layer_numbers is not None:
        parts.append("(after exclude_modules and layers_to_transform)")
    listed = ", ".join(names[:20]) or "none"
    return f"{' '.join(parts)}; its linear layers are: {listed}.{nearest(first, names)}"
