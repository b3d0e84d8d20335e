"""The quantized twin of a dense module."""

from typing import Any

from torch import Tensor, nn
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


def requantized(layer: nn.Module, values: Tensor, scheme: Scheme) -> QuantizedLinear:
    """A layer with sizes, bias, types and threshold of a linear layer or Conv1D, that holds values [out, in] in scheme.

    On the meta device it has shapes alone. Raises FormatError for values that the format cannot hold.
    """
    out_features, in_features = values.shape
    weight, bias = layer.get_parameter("weight"), layer._parameters["bias"]
    dtype = layer.dtype if isinstance(layer, QuantizedWeight) else weight.dtype
    twin = QuantizedLinear(in_features, out_features, bias is not None, scheme, dtype=dtype, device="meta")
    if not values.is_meta:
        twin.quantize_(values)
        # the values came in f32, the layer's own type is that of what it stood for
        twin.dtype = dtype
    twin.register_parameter("bias", bias)
    if isinstance(layer, QuantizedLinear):
        twin.compute_dtype, twin.int8_threshold = layer.compute_dtype, layer.int8_threshold
    return twin.train(layer.training)


def dense_module(layer: QuantizedWeight) -> nn.Module:
    """The dense layer that holds the dequantized weight of a quantized one, in the type of its source."""
    dense = _empty_twin(layer)
    dense.register_parameter("weight", nn.Parameter(layer.dequantize(), requires_grad=False))
    if isinstance(layer, QuantizedConv | QuantizedLinear):
        dense.register_parameter("bias", layer.bias)
    return dense


def _empty_twin(layer: QuantizedWeight) -> nn.Module:
    if isinstance(layer, QuantizedEmbedding):
        rows, width = layer.shape
        return nn.Embedding(rows, width, padding_idx=layer.padding_idx, device="meta")
    if isinstance(layer, QuantizedConv):
        kind: Any = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(layer.shape)]
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        return kind(*sizes, layer.dilation, layer.groups, layer.bias is not None, device="meta")
    if isinstance(layer, QuantizedLinear):
        return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    raise FormatError(f"a {type(layer).__name__} has no dense twin")


def _as_linear(module: Conv1D) -> nn.Linear:
    # Conv1D keeps its weight [in, out]
    linear = nn.Linear(module.nx, module.nf, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = module.bias
    return linear
