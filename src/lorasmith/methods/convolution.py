"""A convolution with a kernel that a method made, moving over its input as the adapted layer does."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from lorasmith.methods.layer import ConvGeometry

_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (functional.conv1d, functional.conv2d, functional.conv3d)


def convolve(x: Tensor, kernel: Tensor, geometry: ConvGeometry) -> Tensor:
    """x [B, C, ...] under kernel [O, C / groups, ...] with the layer's stride, padding, dilation and groups."""
    function = _CONVOLUTIONS[len(geometry.kernel_size) - 1]
    padding: tuple[int, ...] | str | int = geometry.padding
    if geometry.padding_mode != "zeros":
        x, padding = functional.pad(x, _sides(geometry), mode=geometry.padding_mode), 0
    return function(x, kernel, None, geometry.stride, padding, geometry.dilation, geometry.groups)


def mix_channels(h: Tensor, b: Tensor, geometry: ConvGeometry) -> Tensor:
    """h [B, R, ...] with its channels multiplied by b [O, R]: [B, O, ...], a convolution with a kernel of 1."""
    axes = len(geometry.kernel_size)
    return _CONVOLUTIONS[axes - 1](h, b.reshape(*b.shape, *(1 for _ in range(axes))))


def _sides(geometry: ConvGeometry) -> list[int]:
    """What is added before and behind each axis, the last axis first."""
    if geometry.padding == "same":
        reach = [step * (size - 1) for step, size in zip(geometry.dilation, geometry.kernel_size, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in reach]
    elif isinstance(geometry.padding, str):
        pairs = [(0, 0) for _ in geometry.kernel_size]
    else:
        pairs = [(each, each) for each in geometry.padding]
    return [side for pair in reversed(pairs) for side in pair]
