"""The levels of each format against their published definitions and against bitsandbytes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lorasmith.errors import FormatError, InputError
from lorasmith.formats import dynamic_map, formats, quantile_codebook, unsigned_dynamic_map

functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is the truth here")
stats = pytest.importorskip("scipy.stats", reason="scipy derives the quantiles")


def published_quantiles(bits):
    half = 2 ** (bits - 1)
    outermost = 1 - (1 / (2 * (2**bits - 1)) + 1 / 2 ** (bits + 1)) / 2
    positive = stats.norm.ppf(torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64)[:-1])
    negative = stats.norm.ppf(torch.linspace(outermost, 0.5, half, dtype=torch.float64)[:-1])
    levels = torch.tensor([*-negative, 0.0, *positive], dtype=torch.float64).sort().values
    return levels / levels.abs().max()


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_a_codebook_that_bitsandbytes_has_is_bit_equal_to_its(name):
    ours = formats[name].codebook("cpu")
    theirs = functional.get_4bit_type(name, device="cpu")
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize(("ours", "signed"), [(dynamic_map, True), (unsigned_dynamic_map, False)])
def test_the_dynamic_maps_are_bit_equal_to_those_of_bitsandbytes(ours, signed):
    theirs = functional.create_dynamic_map(signed=signed)
    assert torch.equal(ours().view(torch.int32), theirs.view(torch.int32))


def test_the_nf4_literals_are_the_quantiles_of_the_normal_distribution():
    # 1e-6: the published constants were computed in f32.
    torch.testing.assert_close(formats["nf4"].codebook("cpu").double(), published_quantiles(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_quantile_codebook_follows_the_formula_for_every_width(bits):
    # 1e-6: one rounding to f32 and two implementations of the inverse normal distribution.
    torch.testing.assert_close(quantile_codebook(bits).double(), published_quantiles(bits), atol=1e-6, rtol=0)
    assert len(quantile_codebook(bits)) == 2**bits
    assert (quantile_codebook(bits) == 0).sum() == 1


@pytest.mark.parametrize("bits", [1, 9])
def test_a_quantile_codebook_of_another_width_is_refused(bits):
    with pytest.raises(FormatError, match=f"bits={bits}"):
        quantile_codebook(bits)


def test_int4_has_equal_steps_and_an_exact_zero():
    levels = formats["int4"].codebook("cpu")
    assert levels[8] == 0
    assert levels[1] == -1
    assert levels[15] == 1
    # one rounding of sevenths to f32
    torch.testing.assert_close(levels.diff(), torch.full((15,), 1 / 7), atol=1e-7, rtol=0)


def test_every_blockwise_format_has_a_level_for_each_code():
    for name, format in formats.items():
        assert format.name == name
        if format.layout == "blockwise":
            codebook = format.codebook("cpu")
            assert codebook.dtype == torch.float32
            assert codebook.shape == (2**format.bits,)
            assert codebook.max() == 1


def test_a_rowwise_format_refuses_to_give_a_codebook():
    with pytest.raises(FormatError, match="int8"):
        formats["int8"].codebook("cpu")


def test_an_unknown_format_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="Did you mean 'nf4'"):
        formats["nf5"]


def test_a_codebook_first_made_under_inference_mode_can_be_used_in_training():
    with torch.inference_mode():
        codebook = formats["int4"].codebook(torch.device("cpu", 0))
    assert not codebook.is_inference()


# devices by other names, for which nothing was made before
@pytest.mark.parametrize(
    "make",
    [
        lambda: formats["nf4"].codebook(torch.device("cpu", 1)),
        lambda: dynamic_map(torch.device("cpu", 2)),
        lambda: unsigned_dynamic_map(torch.device("cpu", 3)),
    ],
)
def test_levels_first_made_amid_fake_tensors_are_real_for_all_who_come_after(make):
    with FakeTensorMode(allow_non_fake_inputs=True):
        make()
    assert not isinstance(make(), FakeTensor)
