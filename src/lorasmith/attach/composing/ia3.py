"""The weighted sum of IA3 adapters: of their vectors, over the adapters that rescale a module."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lorasmith.attach.adapters import KEY_PREFIX
from lorasmith.attach.composing.composition import Composition, Part
from lorasmith.attach.composing.whole import (
    class_names,
    is_whole,
    merged_modules_to_save,
    merged_names,
    whole_tensors,
)
from lorasmith.attach.content import AdapterContent
from lorasmith.errors import AttachError
from lorasmith.methods import matches
from lorasmith.methods.ia3 import IA3Config

_END = ".ia3_l"


def compose_ia3(parts: Sequence[Part], composition: Composition) -> AdapterContent:
    """One IA3 adapter of several, whose weights should sum to 1: a vector of ones then stays one.

    Raises AttachError for another type than the weighted sum, and for a module that one adapter rescales at its input
    and another at its output.
    """
    if composition.how not in (None, "linear"):
        raise AttachError(f"combination_type={composition.how!r} is for LoRA; vectors of IA3 have a weighted sum only")
    configs = [_config(part) for part in parts]
    sums: dict[str, Tensor] = {}
    inputs: dict[str, bool] = {}
    whole: list[dict[str, Tensor]] = []
    for part, config in zip(parts, configs):
        whole.append({})
        for key, value in part.content.state.items():
            path = key.removeprefix(KEY_PREFIX)
            if not path.endswith(_END):
                if not is_whole(part, path):
                    raise AttachError(f"{part.name} holds {key}, which has no weighted sum; leave this adapter out")
                whole[-1][key] = value
                continue
            module = path.removesuffix(_END)
            at_input = matches(module, config.feedforward_modules)
            if inputs.setdefault(module, at_input) != at_input:
                raise AttachError(f"{module} is rescaled at its input by one adapter and at its output by another")
            sums[key] = sums[key] + part.weight * value if key in sums else part.weight * value
    targets = merged_names([config.target_modules for config in configs], inputs, configs)
    fed = [path for path, at_input in inputs.items() if at_input]
    feedforward = merged_names([config.feedforward_modules or [] for config in configs], fed, configs)
    if not set(feedforward) <= set(targets):
        targets, feedforward = sorted(inputs), sorted(fed)
    config = replace(
        configs[0],
        target_modules=targets,
        feedforward_modules=feedforward,
        exclude_modules=None,
        modules_to_save=merged_modules_to_save(parts),
    )
    return AdapterContent(config, {**sums, **whole_tensors(parts, whole)}, class_names(parts))


def _config(part: Part) -> IA3Config:
    assert isinstance(part.content.config, IA3Config)
    return part.content.config
