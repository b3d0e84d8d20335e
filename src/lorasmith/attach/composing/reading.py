"""Reading the updates of a LoRA adapter that is a plain sum of updates."""

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from lorasmith.attach.adapters import KEY_PREFIX
from lorasmith.attach.composing.composition import Part
from lorasmith.attach.composing.whole import is_whole
from lorasmith.attach.updates import CARRIED_FIELDS, Update
from lorasmith.errors import AttachError
from lorasmith.methods.lora import LoraConfig

_ENDS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
}
# what may differ from the default in an adapter that is a plain sum of updates
_PLAIN = {*CARRIED_FIELDS, "lora_dropout", "lora_bias"}


@dataclass(frozen=True)
class LoraUpdates:
    """A LoRA adapter: its updates by module, and the tensors that it holds whole, by key."""

    config: LoraConfig
    updates: dict[str, Update]
    whole: dict[str, Tensor]


def read_updates(part: Part) -> LoraUpdates:
    """The updates of an adapter.

    Raises AttachError, naming the field or tensor, for a variant of LoRA that is no plain sum of updates.
    """
    config = part.content.config
    assert isinstance(config, LoraConfig)
    _refuse_variants(part.name, config)
    found: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    whole = {}
    for key, value in part.content.state.items():
        path = key.removeprefix(KEY_PREFIX)
        end = next((end for end in _ENDS if path.endswith(end)), None)
        if end is not None:
            found.setdefault(path.removesuffix(end), {})[_ENDS[end]] = value
            if "embedding" in end:
                embeddings.add(path.removesuffix(end))
        elif is_whole(part, path):
            whole[key] = value
        else:
            raise AttachError(f"{part.name} holds {key}, which has no weighted sum with others; leave this adapter out")
    updates = {
        path: Update(own["a"], own["b"], own.get("bias"), config.scaling_of(path), path in embeddings)
        for path, own in found.items()
    }
    return LoraUpdates(config, updates, whole)


def _refuse_variants(name: str, config: LoraConfig) -> None:
    plain = LoraConfig()
    for field in fields(config):
        value: Any = getattr(config, field.name)
        if field.name not in _PLAIN and value and value != getattr(plain, field.name):
            raise AttachError(f"{name} has {field.name}={value!r}, which has no weighted sum; leave this adapter out")
