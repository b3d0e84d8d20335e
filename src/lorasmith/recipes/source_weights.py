"""The 16-bit weights that a quantized base was made from, read one by one."""

from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorasmith.errors import ModelError
from lorasmith.models.checkpoint import Checkpoint, quantization_of
from lorasmith.models.placement import dense_reasons, linears


class SourceWeights:
    """The weights of a dense checkpoint by the module that they belong to; each call reads one.

    skeleton is the checkpoint's model on the meta device, dense. Raises ModelError for a quantized checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, skeleton: PreTrainedModel) -> None:
        if quantization_of(checkpoint.config) is not None:
            raise ModelError(f"{checkpoint.folder} is quantized itself; name the model that it was made from")
        self.checkpoint = checkpoint
        self.prefix = skeleton.base_model_prefix
        self.layers = dict(linears(skeleton))
        self.dense = frozenset(dense_reasons(skeleton))

    def __call__(self, path: str) -> Tensor:
        """The weight [out, in] of the linear layer at path, as stored.

        Raises ModelError where the checkpoint has none of that name and shape.
        """
        layer = self.layers.get(path)
        names = (path, path.removeprefix(f"{self.prefix}."), f"{self.prefix}.{path}")
        stored = next(
            (self.checkpoint.tensors[f"{n}.weight"] for n in names if f"{n}.weight" in self.checkpoint.tensors), None
        )
        if layer is None or stored is None:
            raise ModelError(f"{self.checkpoint.folder} stores no weight of its own for {path}; merge without it")
        if tuple(stored.shape) != tuple(layer.weight.shape):
            expected = list(layer.weight.shape)
            raise ModelError(f"{self.checkpoint.folder}: {path} is stored as {list(stored.shape)}, not {expected}")
        weight = stored.read()
        return weight.T if isinstance(layer, Conv1D) else weight
