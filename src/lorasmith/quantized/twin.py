"""The quantized twin of a dense module."""

from torch import nn
from transformers.pytorch_utils import Conv1D

from lorasmith.errors import FormatError
from lorasmith.quantized.conv import QuantizedConv
from lorasmith.quantized.embedding import QuantizedEmbedding
from lorasmith.quantized.linear import QuantizedLinear
from lorasmith.quantized.scheme import Scheme
from lorasmith.quantized.weight import QuantizedWeight


def quantize_module(module: nn.Module, scheme: Scheme, name: str = "weight") -> QuantizedWeight:
    """A quantized layer that stands for module: linear, transformers' Conv1D, embedding or convolution.

    Raises FormatError for any other module, and for weights that the format cannot hold.
    """
    if isinstance(module, nn.Linear):
        return QuantizedLinear.from_float(module, scheme, name)
    if isinstance(module, Conv1D):
        return QuantizedLinear.from_float(_as_linear(module), scheme, name)
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding.from_float(module, scheme, name)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return QuantizedConv.from_float(module, scheme, name)
    raise FormatError(f"{name}: a {type(module).__name__} cannot be quantized; choose linear layers, embeddings, convs")


def dense_module(layer: QuantizedWeight) -> nn.Module:
    """The dense layer that holds the dequantized weight of a quantized one, in the type of its source."""
    weight = nn.Parameter(layer.dequantize(), requires_grad=False)
    if isinstance(layer, QuantizedEmbedding):
        dense: nn.Module = nn.Embedding(*layer.shape, padding_idx=layer.padding_idx, device="meta")
    elif isinstance(layer, QuantizedConv):
        kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(layer.shape)]
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        dense = kind(*sizes, layer.dilation, layer.groups, layer.bias is not None, device="meta")
        dense.bias = layer.bias
    elif isinstance(layer, QuantizedLinear):
        dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        dense.bias = layer.bias
    else:
        raise FormatError(f"a {type(layer).__name__} has no dense twin")
    dense.weight = weight
    return dense


def _as_linear(module: Conv1D) -> nn.Linear:
    # Conv1D keeps its weight [in, out]
    linear = nn.Linear(module.nx, module.nf, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = module.bias
    return linear
