"""What a method may know of the module that it is placed on: kind and sizes, never how the weight is stored."""

from dataclasses import dataclass
from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorasmith.errors import AttachError
from lorasmith.models.narrow_linear import PLAIN_LINEARS
from lorasmith.ops import DenseProduct, Multiplier, Product
from lorasmith.quantized import QuantizedConv, QuantizedEmbedding, QuantizedLinear, QuantizedWeight

Kind = Literal["linear", "embedding", "conv", "parameter", "block"]


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution moves over its input; the tuples have one entry a spatial axis."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str


@dataclass(frozen=True)
class Stack:
    """How a bare parameter holds its matrices: [experts, out, in], [experts, in, out] if transposed, or one [out, in].

    experts is 1 for the single matrix.
    """

    experts: int
    transposed: bool


@dataclass(frozen=True)
class LayerSpec:
    """A module as a method sees it: out_features x in_features for linear layers, channels for convolutions.

    An embedding has in_features = rows and out_features = width. A block is a module of several layers, from what the
    first of them takes to what the last gives. A bare parameter's path ends in its name. device and
    dtype are those that the module computes with; a quantized layer states the type that it was quantized from.
    """

    path: str
    kind: Kind
    in_features: int
    out_features: int
    has_bias: bool
    dtype: torch.dtype
    device: torch.device
    conv: ConvGeometry | None = None
    stack: Stack | None = None
    # what an embedding multiplies its rows by
    output_scale: float = 1.0


def layer_spec(module: nn.Module, path: str = "") -> LayerSpec | None:
    """The spec of module, or None where it is no linear layer, embedding or convolution."""
    device = next((p.device for p in module.parameters(recurse=False)), torch.device("cpu"))
    has_bias = module._parameters.get("bias") is not None
    dtype = _dtype(module)
    if isinstance(module, nn.Linear | QuantizedLinear):
        return LayerSpec(path, "linear", module.in_features, module.out_features, has_bias, dtype, device)
    if isinstance(module, Conv1D):
        return LayerSpec(path, "linear", module.nx, module.nf, has_bias, dtype, device)
    if isinstance(module, nn.Embedding | QuantizedEmbedding):
        sizes = (module.num_embeddings, module.embedding_dim)
        return LayerSpec(path, "embedding", *sizes, False, dtype, device, output_scale=_output_scale(module, path))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | QuantizedConv):
        moves = (module.kernel_size, module.stride, module.padding, module.dilation)
        geometry = ConvGeometry(*moves, module.groups, module.padding_mode)
        return LayerSpec(path, "conv", module.in_channels, module.out_channels, has_bias, dtype, device, geometry)
    return None


def parameter_spec(module: nn.Module, name: str, path: str) -> LayerSpec:
    """The spec of the parameter `name` of the module at path.

    A module that multiplies from the left by [experts, in, out] says so itself, as transformers' experts do
    (is_transposed); the axes decide which factor is which in PEFT's files. Raises AttachError for a parameter that is
    no matrix and no stack of matrices, and for one that is stored in a quantized form.
    """
    parameter = module.get_parameter(name)
    full, shape = f"{path}.{name}", tuple(parameter.shape)
    if not parameter.is_floating_point():
        raise AttachError(
            f"target_parameters: {full} is stored as {parameter.dtype}; only dense parameters are adapted"
        )
    if len(shape) not in (2, 3):
        raise AttachError(f"target_parameters: {full} has shape {shape}; name a matrix or a stack of matrices")
    transposed = len(shape) == 3 and bool(getattr(module, "is_transposed", False))
    rows, columns = shape[-2:]
    out_features, in_features = (columns, rows) if transposed else (rows, columns)
    stack = Stack(shape[0] if len(shape) == 3 else 1, transposed)
    kind: Kind = "parameter"
    return LayerSpec(full, kind, in_features, out_features, False, parameter.dtype, parameter.device, stack=stack)


def block_spec(module: nn.Module, path: str = "") -> LayerSpec | None:
    """The spec of a module of several layers, None where no linear layer is in it."""
    inside = [spec for child in module.modules() if (spec := layer_spec(child)) is not None and spec.kind == "linear"]
    if not inside:
        return None
    first, last = inside[0], inside[-1]
    return LayerSpec(path, "block", first.in_features, last.out_features, last.has_bias, last.dtype, last.device)


def dense_weight(module: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """The dense weight of a layer as [out, in, ...] ([rows, width] for an embedding), in dtype.

    Raises AttachError for a module without one.
    """
    if isinstance(module, QuantizedWeight):
        return module.dequantize(dtype)
    weight = module._parameters.get("weight")
    if weight is None:
        raise AttachError(f"a {type(module).__name__} has no weight matrix; choose a linear, embedding or convolution")
    value = weight.detach() if dtype is None else weight.detach().to(dtype)
    return value.T if isinstance(module, Conv1D) else value


def frozen_product(module: nn.Module, x: Tensor) -> Product | None:
    """Multiplying x by the frozen weight of a linear layer; None where only the layer's own forward does it right.

    That is: another kind of layer, a trained weight, hooks (accelerate's replace the forward to move weights in), or a
    type that the layer would refuse or convert x to.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or "forward" in vars(module):
        return None
    free = torch.is_autocast_enabled(x.device.type)
    weight = module._parameters.get("weight")
    if weight is None or weight.requires_grad:
        return None
    if _multiplies(type(module)):  # type: ignore[arg-type]
        layer = cast(Multiplier, module)
        return layer.product() if free or layer.working_dtype(x) == x.dtype else None
    if type(module) not in (*PLAIN_LINEARS, Conv1D) or not (free or weight.dtype == x.dtype):
        return None
    return DenseProduct(weight if isinstance(module, nn.Linear) else weight.T)


@cache
def _multiplies(kind: type) -> bool:
    # once a class: the check of a protocol costs as much as a thin product
    return issubclass(kind, Multiplier)


def _output_scale(module: nn.Embedding | QuantizedEmbedding, path: str) -> float:
    if type(module).forward in (nn.Embedding.forward, QuantizedEmbedding.forward):
        return 1.0
    # Gemma's scaled word embedding and its relatives
    scale = getattr(module, "embed_scale", None)
    if scale is None:
        raise AttachError(f"{path}: a {type(module).__name__} is no plain embedding; exclude this module")
    return float(scale)


def _dtype(module: nn.Module) -> torch.dtype:
    if isinstance(module, QuantizedWeight):
        return module.compute_dtype or module.dtype
    weight = module._parameters.get("weight")
    return torch.get_default_dtype() if weight is None else weight.dtype
