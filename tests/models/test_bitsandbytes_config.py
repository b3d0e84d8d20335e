"""Our BitsAndBytesConfig has transformers' fields and leads to our layers."""

import copy
import inspect

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AutoQuantizationConfig

from lorasmith.errors import FormatError
from lorasmith.models.bitsandbytes_config import BitsAndBytesConfig
from lorasmith.models.quantization_config import QuantizationConfig
from lorasmith.quantized import QuantizedLinear, Scheme


def test_the_fields_and_their_defaults_are_transformers_own():
    def parameters(kind):
        signature = inspect.signature(kind.__init__).parameters.values()
        return [(p.name, p.default) for p in signature if p.kind is not p.VAR_KEYWORD and p.name != "self"]

    assert parameters(BitsAndBytesConfig) == parameters(transformers.BitsAndBytesConfig)


@pytest.mark.parametrize(
    "fields",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
        {"load_in_8bit": True, "llm_int8_threshold": 5.0, "llm_int8_skip_modules": ["lm_head"]},
    ],
)
def test_the_attributes_read_as_transformers_own(fields):
    theirs = transformers.BitsAndBytesConfig(**fields)
    ours = BitsAndBytesConfig(**fields)
    for name in inspect.signature(transformers.BitsAndBytesConfig.__init__).parameters:
        if name not in ("self", "kwargs"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert ours.quantization_method() == theirs.quantization_method()
    assert ours.is_quantizable()


@pytest.mark.parametrize(
    ("fields", "scheme"),
    [
        ({"load_in_4bit": True}, Scheme("fp4", 64, False)),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, Scheme()),
        ({"load_in_8bit": True}, Scheme("int8")),
    ],
)
def test_the_fields_mean_the_scheme_that_they_mean_there(fields, scheme):
    assert BitsAndBytesConfig(**fields).scheme == scheme


def test_a_dictionary_of_it_leads_back_to_our_layers():
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    back = AutoQuantizationConfig.from_dict(copy.deepcopy(config).to_dict())
    assert type(back) is QuantizationConfig
    assert back.scheme == config.scheme
    assert BitsAndBytesConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert BitsAndBytesConfig.from_dict({"load_in_8bit": True}).scheme == Scheme("int8")


def test_from_pretrained_with_it_gives_our_layers(saved):
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0)
    model = AutoModelForCausalLM.from_pretrained(saved("llama"), quantization_config=config)
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, QuantizedLinear)
    assert layer.int8_threshold == 4.0


def test_a_compute_type_that_is_asked_for_is_taken(saved):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(saved("llama"), quantization_config=config)
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({}, "exactly one of load_in_4bit=True and load_in_8bit=True"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exactly one"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "keeps 16-bit weights"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "'nf5' is not nf4 or fp4"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "half-ish"}, "'half-ish' is not a torch type"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, pattern):
    with pytest.raises(FormatError, match=pattern):
        BitsAndBytesConfig(**fields)


def test_an_unknown_field_of_our_own_config_is_refused():
    with pytest.raises(FormatError, match="no field block_size; it has format, blocksize"):
        QuantizationConfig(block_size=64)
