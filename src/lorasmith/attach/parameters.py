"""Which bare parameters of a model a config means: `target_parameters`, and the experts that "all-linear" means."""

import logging

from torch import nn

from lorasmith.attach.adapted import Adapted
from lorasmith.attach.adapted_parameter import module_inside
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import allowed, base_modules, is_linear
from lorasmith.errors import AttachError, nearest
from lorasmith.methods import SiteMethod, TargetedConfig, layer_spec, named

log = logging.getLogger(__name__)

# what the layers of an expert were called when each was a layer
_FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
# a bare parameter: the path of its module and its name there
Place = tuple[str, str]


def select_parameters(model: nn.Module, config: TargetedConfig, method: SiteMethod, everything: bool) -> list[Place]:
    """The parameters that config means, in the model's order.

    As in PEFT a name is a whole path or a dotted end of one, and exclude_modules and layers_to_transform do not confine
    them. Where target_modules was "all-linear" (everything) and no parameter is named, stacks of experts are meant too,
    and then they do; what was found is noted in config. Raises AttachError for a name that matches nothing, and where
    the method or the config has nothing to put on a parameter.
    """
    wanted = config.parameter_names
    if wanted is None and everything:
        return _experts(model, config, method)
    if wanted is None:
        _tell_of_missed_experts(model, config)
    if not wanted:
        return []
    places = _bare_parameters(model)
    known = {f"{path}.{name}": (path, name) for path, name in places}
    silent = [name for name in wanted if not any(named(full, name) for full in known)]
    if silent:
        hint = nearest(silent[0], sorted({name for _, name in places}))
        raise AttachError(
            f"target_parameters: {', '.join(silent)} names no parameter of {type(model).__name__}; "
            f"give the end of its path, such as experts.down_proj.{hint}"
        )
    reason = method.refuses_parameters(config)
    if reason is not None:
        raise AttachError(f"target_parameters={list(wanted)}: {reason}")
    return [place for full, place in known.items() if any(named(full, name) for name in wanted)]


def linear_layers_of(model: nn.Module, places: list[Place]) -> list[str]:
    """Paths of the linear layers whose weight is one of places."""
    modules = dict(base_modules(model))
    return [path for path, name in places if name == "weight" and is_linear(modules[path])]


def _bare_parameters(model: nn.Module) -> list[Place]:
    places = []
    for path, module in base_modules(model):
        base = module.base_layer if isinstance(module, Adapted) else module_inside(module)
        # the wrappers inside a wrapper are the same module once more
        if path and not isinstance(module, SavedModule) and not path.endswith(".base_layer"):
            places += [(path, name) for name, _ in base.named_parameters(recurse=False)]
    return places


def _experts(model: nn.Module, config: TargetedConfig, method: SiteMethod) -> list[Place]:
    """The stacks of experts, where the method can sit on them; the log says that they are in it, or why not."""
    places = [place for place in _stacks(model) if allowed(place[0], config)]
    if not places:
        return []
    names = _shortest_names(places, model)
    elements = sum(model.get_submodule(path).get_parameter(name).numel() for path, name in places)
    what = f"{len(places)} stacks of experts ({', '.join(names[:4])}; {elements:,d} weights)"
    reason = method.refuses_parameters(config)
    if reason is not None:
        log.warning("all-linear leaves out %s: %s", what, reason)
        return []
    # a warning, since it is most of what trains and the command line shows nothing less
    log.warning("all-linear includes %s as target_parameters; target_parameters: [] leaves them out", what)
    config.note_parameters(names)
    return places


def _tell_of_missed_experts(model: nn.Module, config: TargetedConfig) -> None:
    """Warn where names of feed-forward layers are meant for experts too, which are no layers since transformers 5."""
    targets = config.target_modules
    meant = sorted(_FEED_FORWARD & set(targets)) if isinstance(targets, list | set) else []
    places = _stacks(model) if meant else []
    if places:
        log.warning(
            "target_modules: %s reach no expert, which this model holds as %d stacks of parameters; "
            "name them too: target_parameters=%s",
            ", ".join(meant),
            len(places),
            _shortest_names(places, model),
        )


def _stacks(model: nn.Module) -> list[Place]:
    """Parameters [experts, ., .] of modules that say by their name that they are experts."""
    found = []
    for path, name in _bare_parameters(model):
        module = module_inside(model.get_submodule(path))
        shape = module.get_parameter(name).shape
        says_so = "expert" in path.lower() or "expert" in type(module).__name__.lower()
        if says_so and len(shape) == 3 and min(shape) > 1 and layer_spec(module) is None:
            found.append((path, name))
    return found


def _shortest_names(places: list[Place], model: nn.Module) -> list[str]:
    """Ends of two components (experts.down_proj) where these mean exactly the places, else the whole paths."""
    chosen = {f"{path}.{name}" for path, name in places}
    ends = {f"{path.rpartition('.')[2]}.{name}" for path, name in places}
    meant = {f"{path}.{name}" for path, name in _bare_parameters(model)}
    meant = {full for full in meant if any(named(full, end) for end in ends)}
    return sorted(ends if meant == chosen else chosen)
