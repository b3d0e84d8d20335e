"""The names and bytes of a quantized weight on disk.

Where the format is bitsandbytes' (nf4, fp4, int8) a weight is written as bitsandbytes writes it, so that its files and
ours are the same; other formats use dotted names of our own. In memory both are the byte tensors of QuantizedWeight:
a parameter's name cannot hold a dot.

Layout of bitsandbytes 0.50 (4 bits): `weight` uint8 [bytes, 1], `weight.absmax` f32 [blocks] or, with double
quantization, uint8 codes beside `weight.nested_absmax` f32 and `weight.nested_quant_map` f32 [256];
`weight.quant_map` f32 [16]; `weight.quant_state.bitsandbytes__<type>` the rest as JSON bytes.
int8: `weight` int8 [out, in], `SCB` f32 [out], `weight_format` uint8 scalar 0 (row-major).
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.errors import FormatError
from lorasmith.formats import NESTED_BLOCKSIZE, dynamic_map
from lorasmith.quantized.scheme import Scheme
from lorasmith.quantized.weight import QuantizedWeight

_STATE = "weight.quant_state.bitsandbytes__"
_ROW_MAJOR = 0
# a name after the module's, in the order that a file lists them
BITSANDBYTES_NAMES = (
    "weight",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    f"{_STATE}nf4",
    f"{_STATE}fp4",
    "SCB",
    "weight_format",
)
OWN_NAMES = {
    "weight": "weight",
    "scales": "weight.scales",
    "nested_scales": "weight.nested_scales",
    "nested_offset": "weight.nested_offset",
    "zeros": "weight.zeros",
}
STORED_NAMES = tuple(dict.fromkeys((*BITSANDBYTES_NAMES, *OWN_NAMES.values())))


def to_stored(layer: QuantizedWeight, prefix: str) -> dict[str, Tensor]:
    """The tensors that a file holds for layer, whose name with its last dot is prefix."""
    if layer.scheme.bitsandbytes is None:
        return {prefix + OWN_NAMES[name]: value.detach() for name, value in layer.stored.items()}
    return to_bitsandbytes(layer, prefix)


def from_stored(layer: QuantizedWeight, tensors: Mapping[str, Tensor], name: str = "weight") -> None:
    """Fill layer with what to_stored, or bitsandbytes, wrote; tensors are keyed without the module's name.

    Nothing is requantized: the bytes stay. Raises FormatError, naming the weight, for a missing scale and for
    tensors of another shape, format or block size than the layer's.
    """
    if layer.scheme.bitsandbytes is not None:
        from_bitsandbytes(layer, tensors, name)
        return
    _require(tensors, [OWN_NAMES[part] for part in layer.stored], name)
    fill(layer, {part: tensors[OWN_NAMES[part]] for part in layer.stored}, name)


def to_bitsandbytes(layer: QuantizedWeight, prefix: str) -> dict[str, Tensor]:
    """The tensors that bitsandbytes would write for layer.

    Raises FormatError where the format is not one of theirs.
    """
    kind = layer.scheme.bitsandbytes
    if kind is None:
        raise FormatError(f"bitsandbytes has no format {layer.scheme}; save it as quant_method lorasmith")
    scales, nested = layer.scale_values()
    codes = layer.weight.detach()
    if layer.rowwise:
        marker = torch.tensor(_ROW_MAJOR, dtype=torch.uint8)
        named = {"weight": codes.view(torch.int8), "SCB": scales.detach(), "weight_format": marker}
        return {prefix + name: tensor for name, tensor in named.items()}
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": layer.scheme.blocksize,
        "dtype": str(layer.dtype).removeprefix("torch."),
        "shape": list(layer.shape),
    }
    named = {"weight": codes.reshape(-1, 1), "weight.absmax": scales.detach(), "weight.quant_map": layer.codebook()}
    if nested is not None:
        named |= {"weight.nested_absmax": nested.scales.detach(), "weight.nested_quant_map": nested.codebook}
        state |= {
            "nested_blocksize": nested.blocksize,
            "nested_dtype": "float32",
            "nested_offset": nested.offset.item(),
        }
    named[_STATE + kind] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    # codebooks are shared by all layers, and a file may not hold one memory twice
    return {prefix + name: tensor.clone() if "quant_map" in name else tensor for name, tensor in named.items()}


def from_bitsandbytes(layer: QuantizedWeight, tensors: Mapping[str, Tensor], name: str = "weight") -> None:
    """Fill layer with the tensors that bitsandbytes wrote for one weight, keyed without the module's name.

    Raises FormatError, naming the weight, as from_stored does.
    """
    if layer.rowwise:
        _require(tensors, ["weight", "SCB"], name)
        if int(tensors.get("weight_format", torch.tensor(_ROW_MAJOR))) != _ROW_MAJOR:
            raise FormatError(f"{name} is int8 in a column layout of old bitsandbytes; save it again with a new one")
        fill(layer, {"weight": tensors["weight"], "scales": tensors["SCB"]}, name)
        return
    _require(tensors, ["weight", "weight.absmax"], name)
    state = read_quant_state(tensors, name)
    _require_same(layer, state, name)
    parts = {"weight": tensors["weight"], "scales": tensors["weight.absmax"]}
    if layer.scheme.double_quant:
        _require(tensors, ["weight.nested_absmax", "weight.nested_quant_map"], name)
        _require_table(tensors["weight.nested_quant_map"], dynamic_map(), name)
        parts["nested_scales"] = tensors["weight.nested_absmax"]
        parts["nested_offset"] = torch.tensor([state["nested_offset"]], dtype=torch.float32)
    if "weight.quant_map" in tensors:
        _require_table(tensors["weight.quant_map"], layer.scheme.number_format.codebook("cpu"), name)
    fill(layer, parts, name)
    layer.dtype = getattr(torch, state["dtype"])


def read_quant_state(tensors: Mapping[str, Tensor], name: str = "weight") -> dict[str, Any]:
    """The JSON that bitsandbytes keeps beside a 4-bit weight; FormatError where it is absent or damaged."""
    found = [tensor for key, tensor in tensors.items() if key.startswith(_STATE)]
    if len(found) != 1:
        raise FormatError(f"{name} comes with {len(found)} quant_state tensors instead of one; the file is incomplete")
    try:
        state = json.loads(bytes(found[0].cpu().tolist()))
        _ = state["quant_type"], state["blocksize"], state["shape"]
        if "nested_offset" in state:
            _ = state["nested_blocksize"]
        if not isinstance(getattr(torch, state["dtype"], None), torch.dtype):
            raise ValueError(f"dtype {state['dtype']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{name} has a damaged quant_state ({error}); download the checkpoint again") from error
    return state


def scheme_of(state: Mapping[str, Any]) -> Scheme:
    """The scheme that a quant_state describes."""
    return Scheme(state["quant_type"], state["blocksize"], "nested_offset" in state)


def _require(tensors: Mapping[str, Tensor], names: list[str], name: str) -> None:
    missing = [part for part in names if part not in tensors]
    if missing:
        raise FormatError(f"{name} comes without {', '.join(missing)}; the checkpoint is incomplete, save it again")


def _require_same(layer: QuantizedWeight, state: Mapping[str, Any], name: str) -> None:
    if tuple(state["shape"]) != layer.shape:
        raise FormatError(f"{name} is stored for the shape {state['shape']}, the layer expects {list(layer.shape)}")
    if scheme_of(state) != layer.scheme:
        raise FormatError(f"{name} is stored in {scheme_of(state)}, the layer expects {layer.scheme}")
    if layer.scheme.double_quant and state["nested_blocksize"] != NESTED_BLOCKSIZE:
        raise FormatError(f"{name} has scales in blocks of {state['nested_blocksize']}, not {NESTED_BLOCKSIZE}")


def _require_table(table: Tensor, expected: Tensor, name: str) -> None:
    if not torch.equal(table.cpu().float(), expected):
        raise FormatError(f"{name} was quantized with another table of levels than its format's; quantize it again")


def fill(layer: QuantizedWeight, parts: Mapping[str, Tensor], name: str) -> None:
    """Set the byte tensors of layer from tensors of any type that hold the same bytes.

    Raises FormatError, naming the weight, where the sizes differ.
    """
    sizes = layer.scheme.storage(layer.shape)
    for part, tensor in parts.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        size = torch.Size(sizes[part])
        if raw.numel() != size.numel():
            raise FormatError(f"{name}: {part} holds {raw.numel()} bytes, the layer expects {size.numel()}")
        setattr(layer, part, nn.Parameter(raw.reshape(size), requires_grad=False))
