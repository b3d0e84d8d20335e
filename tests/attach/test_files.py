import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lorasmith.attach import (
    WEIGHTS_FILE,
    attach,
    class_names,
    load_adapter,
    merge_and_unload,
    merge_in_place,
    name_classes_,
    read_adapter_tensors,
    read_class_names,
    save_adapter,
    unload,
    unmerge,
)
from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods import Site
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
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_error_of_any_kind_leaves_no_half_of_an_adapter(folder, monkeypatch):
    def fails(site):
        raise RuntimeError("out of memory")

    model = llama()
    names = [name for name, _ in model.named_modules()]
    monkeypatch.setattr(Site, "loaded", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        load_adapter(model, folder)
    assert [name for name, _ in model.named_modules()] == names


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
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "XLORA"}))
    with pytest.raises(AdapterError, match=r"XLORA.*lora"):
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


@pytest.mark.parametrize("tied", [False, True])
def test_a_load_that_fails_leaves_embeddings_as_large_as_they_were(tmp_path, tied):
    llama().save_pretrained(tmp_path / "base")
    grown = llama(tie_word_embeddings=tied)
    grown.resize_token_embeddings(70, mean_resizing=False)
    attach(grown, LoraConfig(base_model_name_or_path=str(tmp_path / "base")))
    save_adapter(grown, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    tensors[next(key for key in tensors if "lora_A" in key)] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "adapter" / WEIGHTS_FILE)
    model = llama(tie_word_embeddings=tied)
    embedding, head, before = model.model.embed_tokens, model.lm_head, logits(model)
    weights = embedding.weight, head.weight
    with pytest.raises(AdapterError, match="has shape"):
        load_adapter(model, tmp_path / "adapter")
    assert model.model.embed_tokens is embedding and model.lm_head is head
    assert (embedding.weight, head.weight) == weights
    assert embedding.num_embeddings == len(embedding.weight) == head.out_features == model.config.vocab_size == 64
    assert torch.equal(logits(model), before)


def test_what_was_merged_or_trained_beside_is_so_again_after_a_failed_attach_or_load(folder):
    model = llama()
    book = attach(model, LoraConfig(bias="all"), "first")
    shake(model)
    merge_in_place(model)
    merged = logits(model)
    with pytest.raises(AttachError):
        attach(model, LoraConfig(target_modules=["norm"]), "second")
    assert torch.equal(logits(model), merged)
    with pytest.raises(AdapterError):
        load_adapter(model, folder, "second", config=LoraConfig(r=3))
    assert torch.equal(logits(model), merged)
    assert all(adapted.merged == ["first"] for _, adapted in book.adapted())
    unmerge(model)
    # two roundings apart
    assert_close(logits(model), merged, atol=1e-5, rtol=0)


def test_a_classifiers_head_is_saved_with_the_adapter(tmp_path):
    model = bert()
    attach(model, LoraConfig(task_type="SEQ_CLS"))
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    other = bert(seed=0)
    torch.nn.init.normal_(other.classifier.weight)
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), adapted)


def named_classifier(*names):
    model = bert()
    name_classes_(model, names)
    attach(model, LoraConfig(task_type="SEQ_CLS"))
    return shake(model)


def test_a_classifiers_class_names_are_saved_with_the_adapter(tmp_path):
    save_adapter(named_classifier("no", "maybe", "yes"), tmp_path)
    other = bert()
    load_adapter(other, tmp_path)
    assert other.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert other.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    assert other.config.num_labels == 3


def test_class_names_follow_the_adapter_that_acts(tmp_path):
    save_adapter(named_classifier("no", "maybe", "yes"), tmp_path / "one")
    save_adapter(named_classifier("red", "green", "blue"), tmp_path / "two")
    model = bert()
    own = class_names(model)
    book = load_adapter(model, tmp_path / "one", "one")
    load_adapter(model, tmp_path / "two", "two")
    assert class_names(model) == ("red", "green", "blue")
    book.activate("one")
    assert class_names(model) == ("no", "maybe", "yes")
    save_adapter(model, tmp_path, "two")
    assert read_class_names(tmp_path / "two") == ("red", "green", "blue")
    unload(model)
    assert class_names(model) == own


def test_merging_keeps_the_class_names_of_the_adapter(tmp_path):
    assert class_names(merge_and_unload(named_classifier("no", "maybe", "yes"))) == ("no", "maybe", "yes")


def test_an_adapter_without_class_names_leaves_those_of_the_model(tmp_path):
    save_adapter(named_classifier("no", "maybe", "yes"), tmp_path)
    (tmp_path / "class_names.json").unlink()
    other = bert()
    own = class_names(other)
    load_adapter(other, tmp_path)
    assert class_names(other) == own


def test_a_language_models_adapter_has_no_class_names(folder):
    assert not (folder / "class_names.json").exists()


@pytest.mark.parametrize("content", ["{", '{"0": "no"}', "[]", "[1, 2]"])
def test_damaged_class_names_are_refused(tmp_path, content):
    save_adapter(named_classifier("no", "maybe", "yes"), tmp_path)
    (tmp_path / "class_names.json").write_text(content)
    with pytest.raises(AdapterError, match=r"class_names\.json"):
        load_adapter(bert(), tmp_path)
