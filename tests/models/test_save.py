"""A saved quantized model loads bit-equal here, and in stock transformers where the format is bitsandbytes'."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lorasmith.errors import InputError, ModelError, WriteError
from lorasmith.models.load import load
from lorasmith.models.quantizer import stored_state_dict
from lorasmith.models.save import save_quantized
from lorasmith.quantized import QuantizedLinear, Scheme, quantize_module

THEIRS = {
    Scheme(): {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    Scheme("fp4", 64, False): {"load_in_4bit": True},
    Scheme("int8"): {"load_in_8bit": True},
}
ALL = [
    *THEIRS,
    Scheme("nf4", 128),
    Scheme("int4", 64),
    Scheme("int4", 256, False),
    Scheme("int4", 32, zero_points=True),
]


def same(one, other):
    return set(one) == set(other) and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.mark.parametrize("scheme", ALL, ids=str)
@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "mixtral"])
def test_what_was_saved_loads_back_bit_equal(saved, tmp_path, kind, scheme):
    model = load(saved(kind, torch.bfloat16), scheme=scheme).model
    save_quantized(model, None, tmp_path / "q", max_shard_size="40KB")
    again = load(tmp_path / "q").model
    assert same(again.state_dict(), model.state_dict())
    assert again.dtype == torch.bfloat16
    ids = torch.arange(10)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_the_config_names_bitsandbytes_where_the_format_is_theirs(saved, tmp_path, scheme):
    save_quantized(load(saved("llama"), scheme=scheme).model, None, tmp_path / "q")
    stored = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    theirs = scheme.format != "int4"
    assert stored["quant_method"] == ("bitsandbytes" if theirs else "lorasmith")
    if theirs:
        assert set(stored) == set(BitsAndBytesConfig(load_in_4bit=True).to_dict())


@pytest.mark.parametrize("scheme", THEIRS, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_the_bytes_are_those_that_bitsandbytes_writes_and_reads(saved, tmp_path, kind, scheme):
    pytest.importorskip("bitsandbytes")
    folder = saved(kind, torch.bfloat16)
    quantized_by_them = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**THEIRS[scheme])
    )
    model = load(folder, scheme=scheme).model
    save_quantized(model, None, tmp_path / "q")
    loaded_by_them = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    assert type(loaded_by_them.get_submodule(_layer(model))).__module__.startswith("bitsandbytes")
    assert same(stored_state_dict(model), quantized_by_them.state_dict())
    assert same(loaded_by_them.state_dict(), quantized_by_them.state_dict())
    quantized_by_them.save_pretrained(tmp_path / "theirs")
    assert same(load(tmp_path / "theirs").model.state_dict(), model.state_dict())


def _layer(model):
    return next(name for name, module in model.named_modules() if isinstance(module, QuantizedLinear))


def test_their_checkpoint_with_bfloat16_storage_loads_without_requantizing(saved, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = saved("llama", torch.bfloat16)
    config = BitsAndBytesConfig(**THEIRS[Scheme()], bnb_4bit_quant_storage=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).save_pretrained(tmp_path / "theirs")
    ours = load(folder, scheme=Scheme()).model
    assert same(load(tmp_path / "theirs").model.state_dict(), ours.state_dict())


def test_a_block_size_that_their_config_cannot_say_is_found_in_the_weights(saved, tmp_path):
    save_quantized(load(saved("llama"), scheme=Scheme("nf4", 256)).model, None, tmp_path / "q")
    assert load(tmp_path / "q").model.model.layers[0].mlp.up_proj.scheme == Scheme("nf4", 256)


def test_skipped_layers_stay_dense_after_a_round_trip(saved, tmp_path):
    model = load(saved("llama"), scheme=Scheme(), skip=["o_proj"]).model
    save_quantized(model, None, tmp_path / "q")
    assert same(load(tmp_path / "q").model.state_dict(), model.state_dict())


@pytest.mark.parametrize("scheme", [Scheme(), Scheme("int4")], ids=str)
@pytest.mark.parametrize("task", ["classification", "encoder"])
def test_a_stored_language_model_becomes_a_classifier_or_an_encoder(saved, tmp_path, task, scheme):
    folder = saved("llama")
    save_quantized(load(folder, scheme=scheme, skip=["o_proj"]).model, None, tmp_path / "q")
    stored = load(tmp_path / "q", task=task, seed=3).model
    fresh = load(folder, task=task, scheme=scheme, skip=["o_proj"], seed=3).model
    assert same(stored.state_dict(), fresh.state_dict())


def test_a_stored_classifier_keeps_its_head(saved, tmp_path):
    model = load(saved("classifier"), task="classification", scheme=Scheme()).model
    save_quantized(model, None, tmp_path / "q")
    assert same(load(tmp_path / "q", task="classification").model.state_dict(), model.state_dict())


def test_their_checkpoint_with_a_quantized_head_is_read_as_it_is(saved, tmp_path):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(**THEIRS[Scheme()], llm_int8_skip_modules=["o_proj"])
    AutoModelForCausalLM.from_pretrained(saved("llama"), quantization_config=config).save_pretrained(tmp_path / "q")
    model = load(tmp_path / "q").model
    assert isinstance(model.lm_head, QuantizedLinear)
    assert type(model.model.layers[0].self_attn.o_proj) is torch.nn.Linear


def test_a_model_quantized_by_hand_is_saved_too(saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved("llama"))
    for name, module in list(model.named_modules()):
        if name.endswith("_proj"):
            model.set_submodule(name, quantize_module(module, Scheme()))
    save_quantized(model, None, tmp_path / "q")
    assert same(load(tmp_path / "q").model.state_dict(), model.state_dict())


def test_the_tokenizer_is_saved_beside_the_model(shared, tmp_path):
    loaded = load(shared / "models" / "stories260k", scheme=Scheme())
    save_quantized(loaded.model, loaded.tokenizer, tmp_path / "q")
    text = "Once upon a time"
    assert AutoTokenizer.from_pretrained(tmp_path / "q")(text) == loaded.tokenizer(text)
    assert load(tmp_path / "q").model.generation_config == loaded.model.generation_config


def test_a_dense_model_and_a_mixed_one_are_refused(saved, tmp_path):
    model = load(saved("llama")).model
    with pytest.raises(ModelError, match="no quantized layer"):
        save_quantized(model, None, tmp_path / "q")
    model = load(saved("llama"), scheme=Scheme()).model
    layer = model.model.layers[0].mlp
    layer.up_proj = quantize_module(torch.nn.Linear(128, 192), Scheme("fp4"))
    with pytest.raises(ModelError, match="one scheme for all its layers"):
        save_quantized(model, None, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_a_folder_that_holds_files_is_not_overwritten(saved, tmp_path):
    model = load(saved("llama"), scheme=Scheme()).model
    (tmp_path / "q").mkdir()
    save_quantized(model, None, tmp_path / "q")
    before = {path: path.read_bytes() for path in (tmp_path / "q").iterdir()}
    with pytest.raises(InputError, match=r"q holds files already.*name a new folder"):
        save_quantized(model, None, tmp_path / "q")
    assert {path: path.read_bytes() for path in (tmp_path / "q").iterdir()} == before


def test_a_failed_write_leaves_no_rest(saved, tmp_path, monkeypatch):
    model = load(saved("llama"), scheme=Scheme()).model

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(WriteError, match="q could not be written: the disk is full"):
        save_quantized(model, None, tmp_path / "out" / "q")
    assert not list((tmp_path / "out").iterdir())
