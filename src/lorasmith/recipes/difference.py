"""What fine-tuning changed: two checkpoints of one model, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorasmith.errors import ModelError
from lorasmith.models.checkpoint import Checkpoint, quantization_of
from lorasmith.models.tensor_file import StoredTensor


@dataclass(frozen=True)
class TensorPair:
    """A tensor of the model by its name there, as both checkpoints store it; base is None where only one has it."""

    name: str
    base: StoredTensor | None
    tuned: StoredTensor

    def difference(self) -> Tensor:
        """tuned - base in f32; the whole tensor where the base has none. Holds nothing but these."""
        value = self.tuned.read().float()
        return value if self.base is None else value.sub_(self.base.read().float())

    def differs(self) -> bool:
        """Whether a value of tuned is not the base's."""
        if self.base is None:
            return True
        return not torch.equal(self.tuned.read().float(), self.base.read().float())


def tensor_pairs(model: PreTrainedModel, base: Checkpoint, tuned: Checkpoint) -> Iterator[TensorPair]:
    """The floating-point parameters of model, a skeleton of both, as they store them; a tied one comes once.

    What neither stores under its name (experts that loading fuses) is left out: see unmatched. Raises ModelError where
    tuned lacks one that base has, and for another shape than the base's.
    """
    for name, _ in model.named_parameters():
        ours, theirs = (_stored(checkpoint, name, model.base_model_prefix) for checkpoint in (tuned, base))
        if ours is None and theirs is None:
            continue
        if ours is None:
            raise ModelError(f"{tuned.folder} lacks {name}; it is incomplete, or its config.json is another model's")
        if theirs is not None and theirs.shape != ours.shape:
            raise ModelError(
                f"{name} has the shape {list(ours.shape)} in {tuned.folder} and {list(theirs.shape)} in {base.folder}; "
                "their difference needs one shape: name the model that was tuned"
            )
        yield TensorPair(name, theirs, ours)


def unmatched(model: PreTrainedModel, base: Checkpoint, tuned: Checkpoint) -> list[str]:
    """Names of the model's parameters that neither checkpoint stores under these names."""
    prefix = model.base_model_prefix
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if _stored(base, name, prefix) is None and _stored(tuned, name, prefix) is None]


def whole_module(model: PreTrainedModel, checkpoint: Checkpoint, path: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything that the module at path stores. Raises ModelError for what checkpoint lacks."""
    for key in model.get_submodule(path).state_dict():
        found = _stored(checkpoint, f"{path}.{key}", model.base_model_prefix)
        if found is None:
            raise ModelError(f"{checkpoint.folder} lacks {path}.{key}; it is incomplete")
        yield f"{path}.{key}", found.read()


def require_dense(checkpoint: Checkpoint) -> None:
    """Raise ModelError for a quantized checkpoint: a difference from it would be of its rounding too."""
    if quantization_of(checkpoint.config) is not None:
        raise ModelError(f"{checkpoint.folder} is stored quantized; take the 16-bit model that it was made from")


def _stored(checkpoint: Checkpoint, name: str, prefix: str) -> StoredTensor | None:
    # an encoder's checkpoint names its tensors without the attribute under which a head's model holds it
    short = name.removeprefix(f"{prefix}.")
    return checkpoint.tensors.get(name) or checkpoint.tensors.get(short) or checkpoint.tensors.get(f"{prefix}.{name}")
