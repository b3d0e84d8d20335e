"""The base model's modules, as they are without what adapters added."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorasmith.attach.adapted import Adapted
from lorasmith.attach.adapted_parameter import AdaptedParameter
from lorasmith.attach.prompted import PromptEncoder
from lorasmith.attach.saved_module import SavedModule
from lorasmith.quantized import QuantizedLinear


def base_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the base model's modules, without what adapters added; an adapted module yields its wrapper.

    What is inside an adapted block has the paths that it had before. Where wrappers of parameters nest, each is
    yielded, from the outermost in.
    """
    yield path, module
    if isinstance(module, SavedModule):
        return
    while isinstance(module, AdaptedParameter):
        path, module = f"{path}.base_layer", module.base_layer
        if isinstance(module, AdaptedParameter):
            yield path, module
    for name, child in (module.base_layer if isinstance(module, Adapted) else module).named_children():
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
