"""Names and bytes on disk are bitsandbytes' own where the format is theirs; truth comes from bitsandbytes itself."""

import copy

import pytest
import torch
from torch.testing import assert_close

from lorasmith.errors import FormatError
from lorasmith.quantized import QuantizedLinear, Scheme, quantize_module
from lorasmith.quantized.bitsandbytes_keys import from_stored, to_bitsandbytes, to_stored

FOUR_BITS = [Scheme(kind, size, double) for kind in ("nf4", "fp4") for size in (64, 128) for double in (True, False)]
ALL = [*FOUR_BITS, Scheme("int8"), Scheme("int4"), Scheme("int4", 32, False)]
SHAPES = [(384, 256), (33, 40), (7, 9), (64, 288)]


def layer(scheme, shape=(96, 80), dtype=torch.float32):
    torch.manual_seed(0)
    linear = torch.nn.Linear(shape[1], shape[0], bias=False)
    return quantize_module(linear.to(dtype), scheme)


def empty(like):
    return QuantizedLinear(like.in_features, like.out_features, False, like.scheme, device="meta")


def same(one, other):
    return all(torch.equal(one.stored[part], other.stored[part]) for part in one.stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", FOUR_BITS, ids=str)
def test_four_bit_tensors_equal_those_of_bitsandbytes(scheme, shape, dtype):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    codes, state = bnb.functional.quantize_4bit(
        weight, blocksize=scheme.blocksize, compress_statistics=scheme.double_quant, quant_type=scheme.format
    )
    theirs = {"m.weight": codes, **{f"m.weight.{name}": value for name, value in state.as_dict(packed=True).items()}}
    linear = torch.nn.Linear(shape[1], shape[0], bias=False).to(dtype)
    linear.weight.data = weight
    ours = to_bitsandbytes(quantize_module(linear, scheme), "m.")
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
        assert ours[name].dtype == theirs[name].dtype


def test_int8_tensors_equal_those_of_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    linear = torch.nn.Linear(80, 96, bias=False)
    theirs = bnb.nn.Linear8bitLt(80, 96, bias=False, has_fp16_weights=False)
    theirs.load_state_dict(linear.state_dict())
    wanted = theirs.to("cpu").state_dict()
    ours = to_bitsandbytes(quantize_module(linear, Scheme("int8")), "")
    assert set(ours) == set(wanted)
    for name in wanted:
        assert torch.equal(ours[name], wanted[name])
        assert ours[name].dtype == wanted[name].dtype


def test_bitsandbytes_reads_our_tensors_to_the_same_state():
    bnb = pytest.importorskip("bitsandbytes")
    ours = layer(Scheme(), (64, 128), torch.bfloat16)
    tensors = to_bitsandbytes(ours, "")
    codes = tensors.pop("weight")
    state = bnb.functional.QuantState.from_dict(dict(tensors), device="cpu")
    # both multiply code and scale in f32 and round to bf16 once
    assert_close(bnb.functional.dequantize_4bit(codes, state), ours.dequantize(), atol=1e-3, rtol=2**-7)


@pytest.mark.parametrize("scheme", ALL, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_storing_and_reading_back_changes_no_bit(scheme, shape):
    first = layer(scheme, shape, torch.bfloat16)
    again = empty(first)
    from_stored(again, to_stored(first, ""))
    assert same(first, again)
    assert torch.equal(first.dequantize(torch.float32), again.dequantize(torch.float32))


def test_weights_viewed_as_bfloat16_are_the_same_bytes():
    first = layer(Scheme(), (64, 64))
    tensors = to_stored(first, "")
    tensors["weight"] = tensors["weight"].view(-1).view(torch.bfloat16).reshape(-1, 1)
    again = empty(first)
    from_stored(again, tensors)
    assert same(first, again)


def test_the_source_type_travels_with_the_weight():
    first = layer(Scheme(), dtype=torch.bfloat16)
    again = empty(first)
    from_stored(again, to_stored(first, ""))
    assert again.dtype == torch.bfloat16


def test_tables_are_not_shared_between_the_tensors_of_two_layers():
    # safetensors refuses to write one memory under two names
    both = to_stored(layer(Scheme()), "a.") | to_stored(layer(Scheme()), "b.")
    pointers = [tensor.data_ptr() for name, tensor in both.items() if "quant_map" in name]
    assert len(set(pointers)) == len(pointers) == 4


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_every_missing_tensor_is_an_error_that_names_it(scheme):
    tensors = to_stored(layer(scheme), "")
    optional = {"weight.quant_map", "weight_format"}
    for lost in set(tensors) - optional:
        rest = {name: tensor for name, tensor in tensors.items() if name != lost}
        named = "quant_state" if "quant_state" in lost else lost
        with pytest.raises(FormatError, match=f"m.weight comes with.*{named}"):
            from_stored(empty(layer(scheme)), rest, "m.weight")


def damaged(tensors, **changes):
    state = next(name for name in tensors if "quant_state" in name)
    text = bytes(tensors[state].tolist()).decode()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return {**tensors, state: torch.tensor(list(text.encode()), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (('"shape": [96, 80]', '"shape": [80, 96]'), r"stored for the shape \[80, 96\], the layer expects \[96, 80\]"),
        (('"blocksize": 64', '"blocksize": 128'), "stored in nf4, blocks of 128.* expects nf4, blocks of 64"),
        (('"nested_blocksize": 256', '"nested_blocksize": 128'), "scales in blocks of 128, not 256"),
        (('"quant_type": "nf4"', '"quant_type": "fp4"'), "stored in fp4.* expects nf4"),
        (("{", ""), "damaged quant_state"),
        (('"blocksize": 64, ', ""), "damaged quant_state"),
        (('"dtype": "float32"', '"dtype": "load"'), "damaged quant_state .*dtype 'load'"),
        (('"nested_blocksize": 256, ', ""), "damaged quant_state"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error(change, pattern):
    tensors = damaged(to_stored(layer(Scheme()), ""), change=change)
    with pytest.raises(FormatError, match=pattern):
        from_stored(empty(layer(Scheme())), tensors)


@pytest.mark.parametrize("name", ["weight.quant_map", "weight.nested_quant_map"])
def test_another_table_of_levels_is_an_error(name):
    tensors = {key: copy.deepcopy(value) for key, value in to_stored(layer(Scheme()), "").items()}
    tensors[name][3] += 1e-6
    with pytest.raises(FormatError, match="another table of levels"):
        from_stored(empty(layer(Scheme())), tensors)


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_a_tensor_that_was_cut_is_an_error(scheme):
    tensors = to_stored(layer(scheme), "")
    with pytest.raises(FormatError, match=r"weight holds .* bytes, the layer expects"):
        from_stored(empty(layer(scheme)), {**tensors, "weight": tensors["weight"].reshape(-1)[:-4]})


def test_a_column_layout_of_old_bitsandbytes_is_refused():
    tensors = to_stored(layer(Scheme("int8")), "")
    with pytest.raises(FormatError, match="column layout"):
        from_stored(empty(layer(Scheme("int8"))), {**tensors, "weight_format": torch.tensor(1, dtype=torch.uint8)})


def test_a_format_of_our_own_cannot_be_written_as_theirs():
    with pytest.raises(FormatError, match="bitsandbytes has no format int4"):
        to_bitsandbytes(layer(Scheme("int4")), "")
