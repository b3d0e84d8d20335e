"""Attention inside the segments of a packed row by one kernel for all of them, on a GPU.

`way` is the one place that chooses. On a GPU a call a segment costs a launch each, forward and backward, and leaves
most of the machine idle for short segments. Flash Attention sums the gradient of queries in no fixed order unless
torch.use_deterministic_algorithms(True) is set, here as in sdpa.
Axes: H heads, T tokens, P shared keys before them.
"""

import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn

from lorasmith.models.segments import Segments, block_mask, ends, with_shared
from lorasmith.ops import gpu
from lorasmith.ops.precision import without_autocast

logger = logging.getLogger(__name__)

Way = Literal["varlen", "flex", "segments"]

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_CAPABILITY = (8, 0)
_FLASH_HEAD = 256
# torch 2.11 takes grouped heads without being told
_TAKES = inspect.signature(varlen_attn).parameters
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _TAKES else {}


def way(query: Tensor, value: Tensor, dropout: float) -> Way:
    """Which kernel serves: query [1, H, T, head] in the type that products are computed in.

    - varlen: Flash Attention with variable lengths; the fastest where it is: CUDA from sm_80, 16 bits, heads of equal
      width up to 256, no dropout.
    - flex: compiled for f32, older GPUs, ROCm and values of another width; Triton must be there.
    - segments: a call of sdpa each; the CPU's, where a call costs nothing, and every other device's.
    """
    if not query.is_cuda or dropout:
        return "segments"
    if _is_flash(query, value):
        return "varlen"
    return "flex" if gpu.launches() and _flex_works() else "segments"


def _is_flash(query: Tensor, value: Tensor) -> bool:
    width = query.shape[-1]
    return (
        "window_size" in _TAKES
        and torch.version.hip is None
        and torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY
        and query.dtype in _FLASH_DTYPES
        and width == value.shape[-1]
        and width <= _FLASH_HEAD
        and width % 8 == 0
    )


def attend(
    way: Way, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None
) -> Tensor | None:
    """Attention [1, T, H, head] of query [1, H, T, head], key and value [1, H or fewer, P + T, head], by way.

    None where it is to be done segment by segment: as chosen, or because flex attention could not be compiled.
    """
    with without_autocast(query.device):
        if way == "varlen":
            return varlen(query, key, value, segments, scaling)
        if way == "flex":
            return _flex_or_none(query, key, value, segments, scaling)
    return None


def varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """By variable-length Flash Attention, whose causal masks end at the last key: the P stand before the queries."""
    starts_q, starts_k = ends(segments, query.device)
    # left and right of the diagonal; -1 is without end
    left = segments.window - 1 if segments.window is not None and segments.slides else -1
    key_THD, value_THD = (with_shared(each[0].transpose(0, 1), segments) for each in (key, value))
    y_THD = varlen_attn(
        query[0].transpose(0, 1),
        key_THD,
        value_THD,
        starts_q,
        starts_k,
        segments.longest,
        segments.shared + segments.longest,
        scale=scaling,
        window_size=(left, 0 if segments.causal else -1),
        **_GROUPED,
    )
    assert isinstance(y_THD, Tensor)
    return y_THD[None]


def flex(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """By flex attention, compiled on a GPU; elsewhere all T x (P + T) scores are made, without gradients."""
    kernel = cast(Callable[..., Any], _compiled() if query.is_cuda else flex_attention)
    mask = block_mask(segments, query.device)
    grouped = query.shape[1] != key.shape[1]
    y_1HTD = kernel(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)
    assert isinstance(y_1HTD, Tensor)
    return y_1HTD.transpose(1, 2)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


_failed: list[str] = []


def _flex_works() -> bool:
    return not _failed


def _flex_or_none(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None
) -> Tensor | None:
    """flex, or None from the first failure to compile on: a compiler needs tools and shared memory that may lack."""
    try:
        return flex(query, key, value, segments, scaling)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _failed.append(str(error))
        logger.warning(
            "flex attention failed (%s); packed rows attend segment by segment, which is slower",
            str(error).partition("\n")[0],
        )
        return None
