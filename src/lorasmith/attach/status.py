"""What is on a model, layer by layer and in all, in the fields of PEFT's status reports."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from lorasmith.attach.adapted_parameter import AdaptedParameter
from lorasmith.attach.adapters import Adapters, adapters_of
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import base_modules
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.errors import AttachError
from lorasmith.methods import layer_spec
from lorasmith.quantized import QuantizedWeight, count_parameters

Irregular = Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """One adapted module, in PEFT's fields; requires_grad and devices are by adapter."""

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None


@dataclass
class TunerModelStatus:
    """All adapted modules together, in PEFT's fields; "irregular" where they differ."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | Irregular | None


def layer_status(model: nn.Module, prefix: str = "") -> list[TunerLayerStatus]:
    """The status of every adapted module, and of every one that is trained whole; prefix stands before their names.

    Raises AttachError for a model without any, as one whose only adapter is a soft prompt.
    """
    book = adapters_of(model)
    found = [
        _layer_status(f"{prefix}{path}", module, book)
        for path, module in base_modules(model)
        if isinstance(module, SiteHolder | SavedModule)
    ]
    if not found:
        raise AttachError("no module is adapted; soft prompts and tensors of the base have no layers to report on")
    return found


def _layer_status(name: str, module: SiteHolder | SavedModule, book: Adapters) -> TunerLayerStatus:
    own: dict[str, nn.Module] = dict(module.sites if isinstance(module, SiteHolder) else module.modules_to_save.items())
    adapted = module if isinstance(module, SiteHolder) else None
    return TunerLayerStatus(
        name=name,
        module_type=_module_type(module, book),
        enabled=module.enabled,
        active_adapters=list(book.active) if adapted else [each for each in book.active if each in own],
        merged_adapters=list(adapted.merged) if adapted else [],
        requires_grad={each: _agreed([p.requires_grad for p in site.parameters()]) for each, site in own.items()},
        available_adapters=sorted(own),
        devices={each: _devices(site) for each, site in own.items()},
        quantization_backend=_storage(adapted.base_layer) if adapted else None,
    )


def _module_type(module: SiteHolder | SavedModule, book: Adapters) -> str:
    """PEFT's words: the method and the kind of layer, or the wrapper of a module that is trained whole."""
    if isinstance(module, SavedModule):
        return "ModulesToSaveWrapper"
    method = book.configs[next(iter(module.sites))].METHOD.lower()
    if isinstance(module, AdaptedParameter):
        return f"{method}.ParamWrapper"
    layer = layer_spec(module.base_layer)
    kind = "Module" if layer is None else layer.kind.capitalize()
    return f"{method}.{kind}{len(layer.conv.kernel_size)}d" if layer and layer.conv else f"{method}.{kind}"


def _storage(base: nn.Module) -> str | None:
    return f"lorasmith {base.scheme.format}" if isinstance(base, QuantizedWeight) else None


def _devices(site: nn.Module) -> list[str]:
    return sorted({tensor.device.type for tensor in [*site.parameters(), *site.buffers()]})


def _agreed(values: Iterable[Any]) -> Any:
    """The value that all of values have, or "irregular"; False of none."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else "irregular" if distinct else False


def model_status(model: nn.Module, wrapper: str | None = None) -> TunerModelStatus:
    """The status of all adapters of model; wrapper is the class around it. Raises AttachError as layer_status does."""
    layers = layer_status(model)
    configs = adapters_of(model).configs
    count = count_parameters(model)
    available = sorted({name for layer in layers for name in layer.available_adapters})
    return TunerModelStatus(
        base_model_type=type(model).__name__ if wrapper or isinstance(model, PreTrainedModel) else "other",
        adapter_model_type=str(wrapper),
        peft_types={name: config.METHOD for name, config in configs.items()} if wrapper else {},
        trainable_params=count.trainable,
        total_params=count.total,
        num_adapter_layers=len(layers),
        enabled=_agreed(layer.enabled for layer in layers),
        active_adapters=_agreed_list(layer.active_adapters for layer in layers),
        merged_adapters=_merged(layers),
        requires_grad={name: _agreed(_of(layers, "requires_grad", name)) for name in available},
        available_adapters=available,
        devices={name: sorted(set().union(*_of(layers, "devices", name))) for name in available},
        quantization_backend=_agreed(layer.quantization_backend for layer in layers),
    )


def _of(layers: list[TunerLayerStatus], field: str, adapter: str) -> list[Any]:
    return [getattr(layer, field)[adapter] for layer in layers if adapter in getattr(layer, field)]


def _agreed_list(values: Iterable[list[str]]) -> list[str] | Irregular:
    agreed = _agreed(map(tuple, values))
    return agreed if agreed == "irregular" else list(agreed)


def _merged(layers: list[TunerLayerStatus]) -> list[str] | Irregular:
    merged = {name for layer in layers for name in layer.merged_adapters}
    apart = [set(layer.available_adapters) - set(layer.merged_adapters) for layer in layers]
    return "irregular" if any(names & merged for names in apart) else sorted(merged)
