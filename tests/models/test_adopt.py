"""Layers of bitsandbytes become ours without requantizing."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorasmith.errors import ModelError
from lorasmith.models.adopt import _unpack, adopt_bitsandbytes_
from lorasmith.models.load import load
from lorasmith.quantized import QuantizedLinear, Scheme

bnb = pytest.importorskip("bitsandbytes")

FIELDS = {
    Scheme(): {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    Scheme("nf4", 64, False): {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    Scheme("fp4"): {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    Scheme("int8"): {"load_in_8bit": True},
}


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def theirs(folder, scheme):
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**FIELDS[scheme]))


@pytest.mark.parametrize("scheme", FIELDS, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adopted_layers_hold_what_our_loader_would_have_stored(saved, kind, scheme):
    folder = saved(kind, torch.bfloat16)
    model = theirs(folder, scheme)
    ours = load(folder, scheme=scheme).model
    count = sum(isinstance(module, QuantizedLinear) for module in ours.modules())
    assert adopt_bitsandbytes_(model) == count
    assert same(model, ours)
    assert not any(type(module).__module__.startswith("bitsandbytes") for module in model.modules())


def test_an_adopted_model_saves_as_ours_and_reloads_bit_equal(saved, tmp_path):
    model = theirs(saved("llama", torch.bfloat16), Scheme())
    adopt_bitsandbytes_(model)
    model.save_pretrained(tmp_path / "q")
    assert same(load(tmp_path / "q").model, model)
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "q"), model)


def test_a_reloaded_checkpoint_of_theirs_is_adopted_and_saved(saved, tmp_path):
    # loading a stored model leaves their deserializing step in what saving reverses
    theirs(saved("llama", torch.bfloat16), Scheme()).save_pretrained(tmp_path / "theirs")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    adopt_bitsandbytes_(model)
    model.save_pretrained(tmp_path / "q")
    assert same(load(tmp_path / "q").model, model)


def test_a_model_without_their_layers_is_left_as_it_is(saved):
    model = AutoModelForCausalLM.from_pretrained(saved("llama"))
    assert adopt_bitsandbytes_(model) == 0
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear


def rearranged(model, ids):
    """model after one evaluation forward, which packs its weights on a CPU that can; skipped elsewhere."""
    logits = model.eval()(ids).logits
    states = [m.weight.quant_state for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    if not any(getattr(state, "packing_format_for_cpu", False) for state in states):
        pytest.skip("bitsandbytes does not rearrange weights on this CPU")
    return logits


def test_the_codes_of_rearranged_layers_are_put_back_in_order(saved):
    folder = saved("llama", torch.bfloat16)
    model = theirs(folder, Scheme())
    with torch.no_grad():
        rearranged(model, torch.arange(10)[None])
    adopt_bitsandbytes_(model)
    ours = load(folder, scheme=Scheme()).model
    for name, module in ours.named_modules():
        if isinstance(module, QuantizedLinear):
            adopted = model.get_submodule(name)
            assert torch.equal(adopted.weight, module.weight)
            # bfloat16 keeps 8 significant bits of a scale
            assert_close(adopted.dequantize(torch.float32), module.dequantize(torch.float32), rtol=2**-8, atol=0)
            assert adopted.dtype == torch.bfloat16


def test_a_rearranged_model_computes_after_adoption_what_it_computed_before(saved):
    model = theirs(saved("llama", torch.bfloat16), Scheme())
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = rearranged(model, ids)
        adopt_bitsandbytes_(model)
        # bf16 products summed in another order
        assert_close(model(ids).logits, before, atol=0.03, rtol=0.03)


def test_a_rearranged_model_trains_after_adoption(saved):
    model = theirs(saved("llama", torch.bfloat16), Scheme())
    with torch.no_grad():
        rearranged(model, torch.arange(10)[None])
    adopt_bitsandbytes_(model)
    embedded = model.get_input_embeddings()(torch.arange(6)[None]).detach().requires_grad_()
    model.train()(inputs_embeds=embedded).logits.float().square().sum().backward()
    assert embedded.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(32, 64), (64, 128), (96, 192)])
def test_unpacking_is_the_inverse_of_their_arrangement(shape):
    codes = torch.randint(0, 256, (shape[0] * shape[1] // 2, 1), dtype=torch.uint8)
    state = bnb.functional.quantize_4bit(torch.randn(shape), blocksize=64, quant_type="nf4")[1]
    packed, _ = bnb.functional._convert_weight_packed_for_cpu(codes.clone(), state)
    assert torch.equal(_unpack(packed, shape), codes.reshape(-1))


def test_settings_of_their_layers_are_kept(saved):
    layer = bnb.nn.Linear4bit(64, 64, bias=True, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
    eight = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False, threshold=4.0).to("cpu")
    model = nn.Sequential(layer, eight).eval()
    bias = layer.bias.detach().clone()
    assert adopt_bitsandbytes_(model) == 2
    assert model[0].compute_dtype == torch.bfloat16
    assert torch.equal(model[0].bias, bias)
    assert model[1].int8_threshold == 4.0
    assert not model[0].training


def test_a_layer_that_holds_16_bit_weights_is_refused_by_name():
    model = nn.Sequential(bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=True))
    with pytest.raises(ModelError, match="0 is a Linear8bitLt with 16-bit weights"):
        adopt_bitsandbytes_(model)


def test_a_layer_that_was_never_quantized_is_refused_by_name():
    with pytest.raises(ModelError, match="0 is a Linear4bit that was never quantized"):
        adopt_bitsandbytes_(nn.Sequential(bnb.nn.Linear4bit(64, 64)))
    with pytest.raises(ModelError, match="0 is a Linear8bitLt that was never quantized"):
        adopt_bitsandbytes_(nn.Sequential(bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)))
