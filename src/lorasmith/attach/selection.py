"""Which modules of a model a config means, and which tensors a selective method trains."""

import logging
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from lorasmith.attach.parts import ALL_LINEAR, numbered_layers, part, placed_layers, shortest_names
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.tree import bare, base_modules, is_linear, model_type
from lorasmith.errors import AttachError, nearest
from lorasmith.methods import (
    CLASSIFICATION,
    INPUT_EMBEDDING,
    LayeredConfig,
    SelectiveMethod,
    SiteMethod,
    TargetedConfig,
    layer_number,
    matches,
    named,
    patterned,
)

__all__ = [
    "ALL_LINEAR",
    "allowed",
    "bare",
    "base_modules",
    "is_linear",
    "model_type",
    "select",
    "selected",
    "shortest_names",
    "warn_of_patterns",
]

log = logging.getLogger(__name__)


def select(model: nn.Module, config: TargetedConfig, method: SiteMethod) -> list[str]:
    """Paths of the modules that config means, in the model's order.

    Fills in config.target_modules where it leaves the choice to the model type, and puts the names of what was found
    in the place of words and places of layers. Raises AttachError, with the nearest names, where nothing matches.
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
    said = part(model, config.target_modules, config.task_type in CLASSIFICATION)
    numbers = _numbers(model, config)
    paths = _named(model, config) if said is None else said
    paths = [path for path in paths if allowed(path, config, numbers)]
    if not paths and not config.parameter_names:
        raise AttachError(_nothing_matches(model, config))
    if said is not None or _says_more_than_peft(config):
        _state_what_was_found(model, config, paths, numbers)
    return paths


def _input_embedding(model: nn.Module) -> str:
    """The whole path of the input embedding, as an expression, as PEFT writes it into its files."""
    if not isinstance(model, PreTrainedModel):
        raise AttachError(f"{type(model).__name__} has no known input embedding; name it in target_modules")
    embedding = model.get_input_embeddings()
    return next(path for path, module in base_modules(model) if module is embedding)


def selected(model: nn.Module, config: TargetedConfig, method: SelectiveMethod) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the modules whose own tensors a selective method may train: those it targets, and all in them.

    Fills in config as select does. A module that is trained whole beside the method is not among them.
    """
    if config.target_modules is None:
        config.target_modules = method.default_targets(model_type(model))
    said = part(model, config.target_modules, config.task_type in CLASSIFICATION)
    numbers = _numbers(model, config)
    wanted = config.target_modules if said is None else said
    found = [
        (path, module)
        for path, module in base_modules(model)
        if not isinstance(module, SavedModule)
        and (wanted is None or _lies_in(path, wanted))
        and not _lies_in(path, config.exclude_modules)
        and (numbers is None or layer_number(f"{path}.", []) in numbers)
    ]
    if said is not None or _says_more_than_peft(config):
        holders = [path for path, module in found if any(True for _ in bare(module)[0].parameters(False))]
        if not holders:
            raise AttachError(_nothing_matches(model, config))
        _state_what_was_found(model, config, holders, numbers)
    yield from found


def _lies_in(path: str, wanted: list[str] | set[str] | str | None) -> bool:
    parts = path.split(".")
    return any(matches(".".join(parts[:end]), wanted) for end in range(1, len(parts) + 1))


def _numbers(model: nn.Module, config: TargetedConfig) -> list[int] | None:
    """The numbers of the layers that config is confined to, None for all."""
    if config.layers is None:
        return config.layer_numbers
    if config.layer_numbers is not None:
        raise AttachError(f"layers={config.layers!r} and layers_to_transform say the same; leave one out")
    return placed_layers(config.layers, numbered_layers(model, config.layer_lists))


def _says_more_than_peft(config: TargetedConfig) -> bool:
    return config.layers is not None or (bool(config.exclude_modules) and "exclude_modules" in config.OURS)


def _state_what_was_found(
    model: nn.Module, config: TargetedConfig, paths: list[str], numbers: list[int] | None
) -> None:
    """Let config name the modules at paths in the terms that PEFT has too, as PEFT does with "all-linear"."""
    if isinstance(config, LayeredConfig) and config.layers is not None and not config.layer_lists:
        config.layers_to_transform = numbers
        config.target_modules = shortest_names(paths, model, numbers)
    else:
        config.target_modules = shortest_names(paths, model)
    config.layers = None
    if "exclude_modules" in config.OURS:
        config.exclude_modules = None


def _named(model: nn.Module, config: TargetedConfig) -> list[str]:
    targets = config.target_modules
    paths = [path for path, _ in base_modules(model) if path and matches(path, targets)]
    if paths and not isinstance(targets, str):
        silent = [name for name in targets or [] if not any(named(path, name) for path in paths)]
        if silent:
            known = _linear_names(model)
            log.warning("target_modules that match nothing: %s.%s", ", ".join(silent), nearest(silent[0], known))
    return paths


def warn_of_patterns(config: TargetedConfig, paths: list[str]) -> None:
    """Logs the names and expressions of config's patterns that mean none of the adapted paths."""
    for field, values in config.patterns.items():
        silent = [name for name in values if not any(patterned({name: True}, path, False) for path in paths)]
        if silent:
            hint = nearest(silent[0], {path.rpartition(".")[2] for path in paths})
            log.warning("%s of modules that are not adapted: %s.%s", field, ", ".join(silent), hint)


def allowed(path: str, config: TargetedConfig, numbers: list[int] | None = None) -> bool:
    """Whether a module at path may be adapted: not excluded, not trained whole, in one of the numbered layers.

    numbers are those that config states, unless they are given.
    """
    numbers = config.layer_numbers if numbers is None else numbers
    if matches(path, config.exclude_modules):
        return False
    # a module that is trained whole is not adapted too
    if any(name in _ends(path) for name in config.modules_to_save or []):
        return False
    return numbers is None or layer_number(path, config.layer_lists) in numbers


def _ends(path: str) -> set[str]:
    # every run of path components that ends at one of its dots
    parts = path.split(".")
    return {".".join(parts[i:j]) for j in range(1, len(parts) + 1) for i in range(j)}


def _linear_names(model: nn.Module) -> list[str]:
    return sorted({path.rpartition(".")[2] for path, module in base_modules(model) if path and is_linear(module)})


def _nothing_matches(model: nn.Module, config: TargetedConfig) -> str:
    wanted = config.target_modules
    first = wanted if isinstance(wanted, str) else next(iter(sorted(wanted or [])), "")
    names = _linear_names(model)
    parts = [f"target_modules={wanted!r} match no module of {type(model).__name__}"]
    if config.exclude_modules or config.layers or config.layer_numbers is not None:
        parts.append("(after exclude_modules, layers and layers_to_transform)")
    listed = ", ".join(names[:20]) or "none"
    return f"{' '.join(parts)}; its linear layers are: {listed}.{nearest(first, names)}"
