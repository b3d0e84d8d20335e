"""Attaching: placing a method on a model, in place."""

import copy
import logging

from torch import nn

from lorasmith.attach.adapted import Adapted
from lorasmith.attach.adapted_parameter import module_inside, wrap_parameter_
from lorasmith.attach.adapters import KEY_PREFIX, Adapters, adapters_of
from lorasmith.attach.assignment import BASE
from lorasmith.attach.parameters import linear_layers_of, select_parameters
from lorasmith.attach.prompted import Prompted, input_embedding
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import (
    ALL_LINEAR,
    bare,
    base_modules,
    model_type,
    select,
    selected,
    warn_of_patterns,
)
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.attach.tying import tied_groups
from lorasmith.attach.undoing import undone_on_error
from lorasmith.errors import AttachError, nearest
from lorasmith.methods import (
    CLASSIFICATION,
    AdapterConfig,
    InputMethod,
    LayerSpec,
    PromptLearningConfig,
    SelectiveMethod,
    SiteMethod,
    TargetedConfig,
    block_spec,
    layer_spec,
    method_of,
    named,
    parameter_spec,
)
from lorasmith.models.adopt import adopt_bitsandbytes_
from lorasmith.models.families import HEADS
from lorasmith.models.shape import model_shape
from lorasmith.quantized import QuantizedWeight

log = logging.getLogger(__name__)


def attach(
    model: nn.Module,
    config: AdapterConfig,
    adapter_name: str = "default",
    float32: bool = True,
    *,
    fresh: bool = True,
) -> Adapters:
    """Place the method that config describes on model, freeze the rest, and let the new adapter act.

    Layers of bitsandbytes are taken over first. float32 keeps the adapter's own tensors in float32 beside 16-bit
    weights. fresh is False where the adapter's tensors are loaded next, so that no start is computed for them. Raises
    AttachError, and changes nothing, where the config does not fit the model. What was merged in place is unmerged.
    """
    book = adapters_of(model)
    # which unmerges: a new adapter starts from the base, not from what another one made of it
    with undone_on_error(book):
        place_adapter(book, config, adapter_name, float32, fresh=fresh)
    return book


def place_adapter(book: Adapters, config: AdapterConfig, name: str, float32: bool, *, fresh: bool) -> None:
    """What attach does, for a caller that undoes it where it fails; nothing is merged."""
    _check_name(book, name)
    config = copy.deepcopy(config)
    method, model = method_of(config), book.model
    # those of other adapters may be in place again since the caller began
    book.base_tensors.place([])
    adopt_bitsandbytes_(model)
    if not book.configs:
        _refuse_meta_mixture(model)
        model.requires_grad_(False)
    _complete_modules_to_save(model, config)
    # first, so that nothing below takes a tensor of the originals
    _place_saved_modules(book, config, name)
    if isinstance(method, SiteMethod) and method.ties(config):
        _tie_saved_modules(book, name)
    if isinstance(method, SiteMethod):
        assert isinstance(config, TargetedConfig)
        _place_sites(book, config, method, name, float32, fresh)
    elif isinstance(method, InputMethod):
        assert isinstance(config, PromptLearningConfig)
        _place_prompt(book, config, method, name)
    elif isinstance(method, SelectiveMethod):
        assert isinstance(config, TargetedConfig)
        _place_selection(book, config, method, name)
    book.configs[name] = config
    book.activate([name])


def is_taken_by_torch(name: str) -> bool:
    """Whether PyTorch's ModuleDict has an attribute of that name, so that no adapter can."""
    return hasattr(nn.ModuleDict(), name)


def _check_name(book: Adapters, name: str) -> None:
    if not name or "." in name:
        raise AttachError(f"adapter name {name!r} must not be empty or hold a dot; choose a plain word")
    if name in book.configs:
        raise AttachError(f"adapter {name!r} exists already; choose another name or delete that one first")
    if name == BASE:
        raise AttachError(f"adapter name {name!r} means the bare base where rows are named; choose another")
    if is_taken_by_torch(name):
        raise AttachError(f"adapter name {name!r} is taken by PyTorch's ModuleDict; choose another")


def _refuse_meta_mixture(model: nn.Module) -> None:
    devices = {parameter.device.type for parameter in model.parameters()}
    if "meta" in devices and len(devices) > 1:
        raise AttachError("some weights are on the meta device and some are not; load the model completely first")


def _place_sites(
    book: Adapters, config: TargetedConfig, method: SiteMethod, name: str, float32: bool, fresh: bool
) -> None:
    method.prepare(config, model_type(book.model))
    modules = dict(base_modules(book.model))
    everything = config.target_modules == ALL_LINEAR
    paths = select(book.model, config, method)
    places = select_parameters(book.model, config, method, everything)
    # the weight of a linear layer is adapted as the layer, which never makes the sum of weight and update
    direct = linear_layers_of(book.model, places)
    paths += [path for path in direct if path not in paths]
    places = [(path, parameter) for path, parameter in places if parameter != "weight" or path not in direct]
    for path, parameter in places:
        if path in paths or isinstance(modules[path], Adapted):
            raise AttachError(f"{path} and its parameter {parameter} are both targets; leave out one of the two")
    if fresh:
        warn_of_patterns(config, [*paths, *(f"{path}.{parameter}" for path, parameter in places)])
    tied = _tied(book.model, paths) if method.ties(config) else {}
    if config.ensures_tying and not tied and not config.modules_to_save:
        log.warning("ensure_weight_tying: no target shares its weight with another layer, so nothing is tied")
    blocks = method.sits_on_blocks(config)
    layers = {path: _layer(modules[path], path, blocks) for path in paths}
    parameters = {place: parameter_spec(module_inside(modules[place[0]]), place[1], place[0]) for place in places}
    shared = method.shared(config, [*layers.values(), *parameters.values()], float32)
    sites = {path: method.site(config, layer, float32, shared) for path, layer in layers.items()}
    sites |= {path: method.tied_site(config, sites[first], _layer(modules[path], path)) for path, first in tied.items()}
    inner = {place: method.site(config, layer, float32, shared) for place, layer in parameters.items()}
    for path, site in sites.items():
        found = modules[path]
        adapted = found if isinstance(found, Adapted) else _wrap(book.model, path, found)
        if name in adapted.sites:
            raise AttachError(f"{path} would be adapted twice by {name!r}; name it for one of the methods only")
        adapted.add(name, site)
        site.settle(adapted.base_weight, fresh)
        site.train(found.training)
    # from the last to the first, so that the paths of modules inside wrapped ones stay true
    for (path, parameter), site in reversed(list(inner.items())):
        wrap_parameter_(book.model, path, parameter).add(name, site)
        site.train(modules[path].training)
    _place_biases(book, method.biases(config), list(layers), name)
    for companion, own_config in method.companions(config):
        _place_sites(book, own_config, companion, name, float32, fresh)


def _tied(model: nn.Module, paths: list[str]) -> dict[str, str]:
    """Layers that share their weight with a target, each with the one whose site it shares, which paths then hold."""
    tied: dict[str, str] = {}
    for group in tied_groups(model):
        if not any(path in paths for path in group):
            continue
        first, *others = group
        paths[:] = [path for path in paths if path not in group] + [first]
        tied |= dict.fromkeys(others, first)
    return tied


def _layer(module: nn.Module, path: str, blocks: bool = False) -> LayerSpec:
    base = module.base_layer if isinstance(module, Adapted) else module
    layer = layer_spec(base, path)
    if layer is None and blocks:
        layer = block_spec(base, path)
    if layer is None:
        raise AttachError(
            f"target {path} is a {type(module).__name__}, not a linear layer, embedding or convolution; "
            "name such a layer or exclude it"
        )
    return layer


def _wrap(model: nn.Module, path: str, module: nn.Module) -> Adapted:
    if not path:
        raise AttachError("the model itself is the target; wrap the layer in a model, such as nn.Sequential(layer)")
    adapted = Adapted(module)
    adapted.train(module.training)
    model.set_submodule(path, adapted)
    return adapted


def _place_biases(book: Adapters, which: str, paths: list[str], name: str) -> None:
    if which == "none":
        return
    chosen = {}
    for path, module in base_modules(book.model):
        base, deeper = bare(module)
        if isinstance(module, SavedModule) or (which != "all" and path not in paths):
            continue
        bias = base._parameters.get("bias")
        if bias is not None:
            chosen[f"{KEY_PREFIX}{path}.{deeper}bias"] = bias
    book.base_tensors.add(name, chosen)


def _place_prompt(book: Adapters, config: PromptLearningConfig, method: InputMethod, name: str) -> None:
    embedding = input_embedding(book.model)
    method.prepare(config, model_shape(book.model))
    prompt = method.prompt(config, embedding)
    book.prompted = book.prompted or Prompted(book.model)
    book.prompted.add(name, prompt)


def _place_selection(book: Adapters, config: TargetedConfig, method: SelectiveMethod, name: str) -> None:
    chosen, quantized = {}, []
    for path, module in selected(book.model, config, method):
        base, deeper = bare(module)
        for tensor, parameter in base.named_parameters(recurse=False):
            full = f"{path}.{tensor}" if path else tensor
            if not method.selects(config, full, parameter):
                continue
            if parameter.is_floating_point():
                chosen[f"{KEY_PREFIX}{path}.{deeper}{method.infix}{tensor}"] = parameter
            elif isinstance(base, QuantizedWeight):
                quantized.append(path)
    whole = any(name in module.modules_to_save for _, module in book.saved_modules())
    if not chosen and not whole:
        raise AttachError(f"{config.METHOD} selects no tensor of {type(book.model).__name__}{_why(quantized)}")
    if quantized:
        log.warning("%s trains %d tensors%s", config.METHOD, len(chosen), _why(quantized))
    book.base_tensors.add(name, chosen)


def _why(quantized: list[str]) -> str:
    """What a selective method leaves out, for the end of a sentence."""
    if not quantized:
        return " (a model without biases has none to train); choose other modules, or another method, such as LoRA"
    paths = dict.fromkeys(quantized)
    names = sorted({path.rpartition(".")[2] for path in paths})
    return (
        f"; {len(paths)} quantized weights ({', '.join(names)}) cannot train and stay as they are; leave them out of "
        "the quantization (quantization.skip), or adapt them with LoRA"
    )


def _complete_modules_to_save(model: nn.Module, config: AdapterConfig) -> None:
    """A classifier's head is new, so it is always trained and saved, as in PEFT."""
    if config.task_type not in CLASSIFICATION or not config.trains_heads:
        return
    heads = [name for name, _ in model.named_children() if name in HEADS]
    wanted = list(config.modules_to_save or [])
    config.modules_to_save = wanted + [name for name in heads if name not in wanted] or None


def _place_saved_modules(book: Adapters, config: AdapterConfig, name: str) -> None:
    modules = [(path, module) for path, module in base_modules(book.model) if path]
    for wanted in config.modules_to_save or []:
        found = [(path, module) for path, module in modules if named(path, wanted)]
        # PEFT lists the usual names of a classifier's head, of which a model has one
        if not found and wanted not in HEADS:
            known = sorted({path.rpartition(".")[2] for path, _ in modules})
            raise AttachError(f"modules_to_save: no module is named {wanted!r}.{nearest(wanted, known)}")
        for path, module in found:
            if isinstance(module, SiteHolder):
                raise AttachError(f"modules_to_save: {path} is adapted already; leave it out of one of the two")
            _refuse_nested(book, path)
            saved = module if isinstance(module, SavedModule) else SavedModule(module)
            saved.add(name)
            if saved is not module:
                book.model.set_submodule(path, saved)


def _refuse_nested(book: Adapters, path: str) -> None:
    """Raise AttachError for a module to save that lies in another one, or has in it what an adapter put there.

    A copy of the whole would hide from the book what is inside.
    """
    for other, module in base_modules(book.model):
        if isinstance(module, SavedModule) and path.startswith(f"{other}."):
            raise AttachError(f"modules_to_save: {path} lies in {other}, which is saved whole; leave one of them out")
        if isinstance(module, SiteHolder | SavedModule) and other.startswith(f"{path}."):
            raise AttachError(f"modules_to_save: {other}, which lies in {path}, has an adapter already; name others")


def _tie_saved_modules(book: Adapters, name: str) -> None:
    """Let the copies of layers that share a weight share theirs, a copy of each being made where one is asked for."""
    for paths in tied_groups(book.model):
        found = [book.model.get_submodule(path) for path in paths]
        if not any(isinstance(module, SavedModule) and name in module.modules_to_save for module in found):
            continue
        first, *others = (_saved(book, path, name) for path in paths)
        for other in others:
            other.weight = first.weight


def _saved(book: Adapters, path: str, name: str) -> nn.Module:
    module = book.model.get_submodule(path)
    if isinstance(module, SiteHolder):
        raise AttachError(f"{path} is adapted and shares its weight with a module of modules_to_save; leave it out")
    saved = module if isinstance(module, SavedModule) else SavedModule(module)
    if name not in saved.modules_to_save:
        saved.add(name)
    if saved is not module:
        book.model.set_submodule(path, saved)
    return saved.modules_to_save[name]
