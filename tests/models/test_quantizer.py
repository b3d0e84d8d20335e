"""transformers' from_pretrained loads, saves and reloads our layers through its quantizer hook."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers import auto

from lorasmith.errors import FormatError, ModelError
from lorasmith.models.bitsandbytes_config import BitsAndBytesConfig
from lorasmith.models.load import load
from lorasmith.models.quantization_config import QuantizationConfig
from lorasmith.models.quantizer import LorasmithQuantizer, register
from lorasmith.quantized import QuantizedLinear, Scheme

SCHEMES = [Scheme(), Scheme("nf4", 128, False), Scheme("fp4"), Scheme("int4", 64), Scheme("int8")]


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "mixtral"])
def test_the_hook_stores_the_bits_that_our_loader_stores(saved, kind, scheme):
    folder = saved(kind, torch.bfloat16)
    hooked = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=QuantizationConfig.from_scheme(scheme), dtype=torch.bfloat16
    )
    assert same(hooked, load(folder, scheme=scheme).model)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "mixtral"])
def test_a_saved_model_reloads_bit_equal_by_transformers_and_by_us(saved, tmp_path, kind, scheme):
    first = AutoModelForCausalLM.from_pretrained(
        saved(kind), quantization_config=QuantizationConfig.from_scheme(scheme, skip_modules=["mlp"])
    )
    first.save_pretrained(tmp_path / "quantized", max_shard_size="40KB")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "quantized"), first)
    assert same(load(tmp_path / "quantized").model, first)


def test_a_model_that_our_loader_made_saves_and_reloads_too(saved, tmp_path):
    loaded = load(saved("llama"), scheme=Scheme()).model
    loaded.save_pretrained(tmp_path / "a")
    again = load(tmp_path / "a").model
    again.save_pretrained(tmp_path / "b")
    assert same(load(tmp_path / "b").model, loaded)


def test_the_saved_config_says_lorasmith_and_lists_what_is_dense(saved, tmp_path):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["o_proj"])
    AutoModelForCausalLM.from_pretrained(saved("llama"), quantization_config=config).save_pretrained(tmp_path / "q")
    stored = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "lorasmith"
    assert stored["format"] == "nf4"
    assert stored["double_quant"] is False
    assert stored["skip_modules"] == [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)] + ["lm_head"]


@pytest.mark.parametrize("lost", ["weight.scales", "weight.nested_scales", "weight.nested_offset", "weight"])
def test_a_lost_part_of_a_stored_weight_is_an_error(saved, tmp_path, edit_tensors, lost):
    model = load(saved("llama"), scheme=Scheme("int4")).model
    model.save_pretrained(tmp_path / "q")
    name = "model.layers.1.mlp.up_proj"
    edit_tensors(tmp_path / "q", lambda tensors: tensors.pop(f"{name}.{lost}"))
    with pytest.raises((FormatError, ModelError), match=f"{name}.* (without|lacks) {lost}|no weight for {name}"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    with pytest.raises((FormatError, ModelError), match=f"{name}.* (without|lacks) {lost}|no weight for {name}"):
        load(tmp_path / "q")


@pytest.mark.parametrize("lost", ["weight.absmax", "weight.nested_absmax", "weight.quant_state.bitsandbytes__nf4"])
def test_a_lost_part_of_a_weight_under_bitsandbytes_names_is_an_error(saved, tmp_path, edit_tensors, lost):
    load(saved("llama"), scheme=Scheme()).model.save_pretrained(tmp_path / "q")
    name = "model.layers.1.mlp.up_proj"
    edit_tensors(tmp_path / "q", lambda tensors: tensors.pop(f"{name}.{lost}"))
    with pytest.raises(FormatError, match=f"{name}.weight comes with"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q")


def test_nan_is_an_error_that_names_the_tensor(saved, edit_tensors):
    folder = saved("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors[name].view(-1)[7:8].fill_(float("nan")))
    with pytest.raises(FormatError, match=f"{name} holds NaN or Inf"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=QuantizationConfig())


def test_a_stored_weight_whose_layer_is_listed_as_dense_is_an_error(saved, tmp_path, edit_config):
    load(saved("llama"), scheme=Scheme()).model.save_pretrained(tmp_path / "q")
    stored = QuantizationConfig(skip_modules=["lm_head", "up_proj"]).to_dict()
    edit_config(tmp_path / "q", quantization_config=stored)
    with pytest.raises(FormatError, match=r"up_proj\.weight is stored quantized, but its layer is listed"):
        load(tmp_path / "q")


def test_a_model_without_linear_layers_is_refused(saved):
    with pytest.raises(ModelError, match="no linear layer to quantize"):
        load(saved("llama"), scheme=Scheme(), skip=["model"])


def test_registering_twice_does_no_harm():
    register()
    register()
    assert auto.AUTO_QUANTIZER_MAPPING["lorasmith"] is LorasmithQuantizer


def test_importing_the_package_makes_the_config_known(tmp_path):
    code = "import lorasmith; from transformers import LlamaModel; from transformers.quantizers import auto; "
    code += "auto.AUTO_QUANTIZER_MAPPING['lorasmith']"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_a_device_map_changes_nothing_on_one_device(saved, device_map):
    pytest.importorskip("accelerate")
    folder = saved("llama")
    mapped = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=QuantizationConfig(), device_map=device_map
    )
    assert same(mapped, load(folder, scheme=Scheme(), device="cpu").model)


def test_a_loaded_model_can_be_copied(saved):
    model = load(saved("llama"), scheme=Scheme()).model
    assert same(copy.deepcopy(model), model)


def test_the_trainer_takes_the_model_for_trainable(saved):
    model = load(saved("llama"), scheme=Scheme()).model
    assert model.hf_quantizer.is_trainable
    assert model.is_quantized


def test_gradients_reach_the_input_and_not_the_stored_weight(saved):
    model = load(saved("llama"), scheme=Scheme()).model
    embedded = model.get_input_embeddings()(torch.arange(6)[None]).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.square().sum().backward()
    assert embedded.grad.abs().sum() > 0
    assert model.model.layers[0].mlp.up_proj.weight.grad is None


def test_a_bitsandbytes_checkpoint_loads_by_the_hook_with_our_config(saved, tmp_path):
    # transformers refuses two different config classes, so the way round its own quantizer is config=
    load(saved("llama"), scheme=Scheme()).model.save_pretrained(tmp_path / "q")
    config = AutoConfig.from_pretrained(tmp_path / "q")
    assert config.quantization_config["quant_method"] == "lorasmith"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "q", config=config)
    assert isinstance(model.model.layers[0].mlp.up_proj, QuantizedLinear)


def test_this_runs_on_a_transformers_that_is_supported():
    assert tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 17)
