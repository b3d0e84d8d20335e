import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorasmith.attach import attach, load_adapter, read_adapter_tensors, save_adapter
from lorasmith.errors import AdapterError
from lorasmith.methods.lora import LoraConfig
from tiny import bert, llama, logits, shake


@pytest.fixture
def folder(tmp_path):
    model = llama()
    attach(model, LoraConfig(task_type="CAUSAL_LM"))
    save_adapter(shake(model), tmp_path)
    return tmp_path


def test_keys_are_pefts(folder):
    keys = set(load_file(folder / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in keys
    assert len(keys) == 2 * 2 * 2


def test_a_second_adapter_gets_a_folder_of_its_name(tmp_path):
    model = llama()
    attach(model, LoraConfig(), "poems")
    save_adapter(model, tmp_path, "poems")
    assert (tmp_path / "poems" / "adapter_config.json").is_file()
    assert "poems" not in "".join(load_file(tmp_path / "poems" / "adapter_model.safetensors"))


def test_missing_and_unexpected_keys_are_an_error_that_lists_them(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.stranger"] = tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"missing .*lora_A.*unexpected .*stranger"):
        load_adapter(llama(), folder)


def test_an_adapter_of_another_shape_is_refused_with_both_shapes(folder):
    with pytest.raises(AdapterError, match=r"\(8, 32\).*\(8, 64\)"):
        load_adapter(llama(hidden_size=64), folder)


def test_what_does_not_fit_leaves_the_model_as_it_was(folder):
    model = llama(hidden_size=64)
    before = logits(model)
    with pytest.raises(AdapterError):
        load_adapter(model, folder)
    assert torch.equal(logits(model), before)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(AdapterError, match=str(tmp_path)):
        load_adapter(llama(), tmp_path)


def test_a_pickle_is_refused(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        read_adapter_tensors(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="damaged"):
        load_adapter(llama(), folder)


def test_a_method_that_is_not_built_is_refused_with_the_list(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "VERA"}))
    with pytest.raises(AdapterError, match=r"VERA.*lora"):
        load_adapter(llama(), folder)


def test_resized_embeddings_travel_with_the_adapter(tmp_path):
    base = tmp_path / "base"
    llama().save_pretrained(base)
    model = llama()
    model.resize_token_embeddings(70, mean_resizing=False)
    attach(model, LoraConfig(modules_to_save=["embed_tokens", "lm_head"], base_model_name_or_path=str(base)))
    ids = torch.tensor([[5, 66, 69]])
    adapted = logits(shake(model), ids)
    save_adapter(model, tmp_path / "adapter")
    other = llama()
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(logits(other, ids), adapted)


def test_frozen_resized_embeddings_travel_too(tmp_path):
    base = tmp_path / "base"
    llama().save_pretrained(base)
    model = llama()
    model.resize_token_embeddings(70, mean_resizing=False)
    attach(model, LoraConfig(base_model_name_or_path=str(base)))
    ids = torch.tensor([[5, 66, 69]])
    adapted = logits(shake(model), ids)
    save_adapter(model, tmp_path / "adapter")
    other = llama()
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(logits(other, ids), adapted)


def test_a_classifiers_head_is_saved_with_the_adapter(tmp_path):
    model = bert()
    attach(model, LoraConfig(task_type="SEQ_CLS"))
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    other = bert(seed=0)
    torch.nn.init.normal_(other.classifier.weight)
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), adapted)
