"""Several adapters on one model: nothing of one may leak into another, and the base always comes back."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import lorasmith
from lorasmith.attach import Adapters, attach, merge_and_unload, merge_in_place, save_adapter
from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods.bitfit import BitFitConfig
from lorasmith.methods.bottleneck import BottleneckConfig
from lorasmith.methods.full import FullConfig
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.lora import LoraConfig
from tiny import IDS, llama, logits, shake

BIASED = LoraConfig(bias="all", target_modules=["q_proj"])


def two(model: nn.Module, config=BIASED) -> tuple[Adapters, dict[str, torch.Tensor]]:
    """Adapters "a" and "b", each moved; the logits with each of them alone."""
    seen = {}
    for size, name in ((0.1, "a"), (0.2, "b")):
        book = attach(model, config, name)
        seen[name] = logits(shake(model, size))
    return book, seen


def test_a_new_adapter_starts_from_the_base_and_not_from_another_one():
    base = logits(llama())
    model = llama()
    attach(model, BIASED, "a")
    shake(model)
    attach(model, BIASED, "b")
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("config", [BIASED, BitFitConfig(), FullConfig(target_modules=["norm"])], ids=repr)
def test_switching_among_adapters_loses_nothing(config):
    base, model = logits(llama()), llama()
    book, seen = two(model, config)
    for names in (["a"], ["b"], ["a", "b"], [], ["b"], ["a"]):
        book.activate(names)
        with book.disabled():
            assert torch.equal(logits(model), base)
        if len(names) == 1:
            assert torch.equal(logits(model), seen[names[0]])
    book.activate([])
    assert torch.equal(logits(model), base)


def test_a_tied_tensor_keeps_its_trained_value_over_a_switch():
    model = llama(tie_word_embeddings=True)
    book = attach(model, FullConfig())
    trained = logits(shake(model))
    with book.disabled():
        pass
    assert torch.equal(logits(model), trained)


def test_copies_keep_their_own_originals():
    model = llama()
    book = attach(model, BIASED)
    shake(model)
    twin = copy.deepcopy(model)
    with book.disabled():
        base = logits(model)
    with lorasmith.adapters_of(twin).disabled():
        assert torch.equal(logits(twin), base)
    assert torch.equal(logits(twin), logits(model))


def test_merging_an_idle_adapter_takes_its_own_biases():
    model = llama()
    _, seen = two(model)
    assert_close(logits(merge_and_unload(model, ["a"])), seen["a"], atol=1e-5, rtol=0)


def test_what_was_merged_in_place_is_unmerged_by_switching():
    base, model = logits(llama()), llama()
    book, seen = two(model, LoraConfig())
    book.activate("a")
    merge_in_place(model)
    book.activate("b")
    assert torch.equal(logits(model), seen["b"])
    merge_in_place(model)
    with book.disabled():
        assert torch.equal(logits(model), base)
    merge_in_place(model, ["a"])
    book.remove("a")
    assert torch.equal(logits(model), seen["b"])


def test_a_refused_merge_changes_nothing():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Conv1d(4, 4, 3, groups=2, padding=1))
    book = attach(model, LoraConfig(target_modules=["0"], lora_bias=True, r=2))
    shake(model)
    x = torch.randn(2, 4, 4)
    before = model(x)
    with pytest.raises(AttachError, match="has a bias"):
        merge_in_place(model)
    assert torch.equal(model(x), before)
    attach(model, LoraConfig(target_modules=["1"], r=2), "grouped")
    book.activate(["default", "grouped"])
    before = model(x)
    with pytest.raises(AttachError, match="groups"):
        merge_and_unload(model)
    assert torch.equal(model(x), before)


def test_a_merge_keeps_the_order_of_methods_that_scale_the_input():
    model = llama()
    attach(model, LoraConfig(target_modules=["down_proj"]), "lora")
    shake(model)
    attach(model, IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]), "ia3")
    shake(model)
    book = lorasmith.adapters_of(model)
    book.activate(["lora", "ia3"])
    both = logits(model)
    assert_close(logits(merge_and_unload(model)), both, atol=1e-5, rtol=0)


def test_a_circular_convolution_merges_exactly():
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"))
    attach(model, LoraConfig(target_modules=["0"], r=2))
    x = torch.randn(2, 4, 9)
    adapted = shake(model)(x).detach()
    assert_close(merge_and_unload(model)(x), adapted, atol=1e-5, rtol=0)


def test_lora_on_a_scaled_embedding_is_scaled_like_its_rows():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=64, num_key_value_heads=1, **sizes)).eval()
    attach(model, LoraConfig(target_modules=["embed_tokens"]))
    adapted = logits(shake(model))
    assert_close(logits(merge_and_unload(model)), adapted, atol=1e-4, rtol=0)


def test_adapters_attached_while_all_are_off_stay_off():
    model = llama()
    book, _ = two(model, LoraConfig())
    with book.disabled():
        base = logits(model)
        attach(model, BottleneckConfig(), "c")
        shake(model)
        assert torch.equal(logits(model), base)
    assert not torch.equal(logits(model), base)


def test_removing_the_active_adapter_activates_another():
    model = lorasmith.get_peft_model(llama(), LoraConfig())
    model.add_adapter("other", LoraConfig())
    model.delete_adapter("default")
    assert model.active_adapter == "other"


def test_wrappers_are_not_nested():
    model = lorasmith.get_peft_model(llama(), LoraConfig())
    again = lorasmith.get_peft_model(model, LoraConfig(), "second")
    assert list(model.peft_config) == list(again.peft_config) == ["default", "second"]


def test_a_damaged_file_leaves_the_adapter_that_it_was_to_replace(tmp_path):
    model = lorasmith.get_peft_model(llama(), LoraConfig()).eval()
    before = logits(shake(model))
    other = llama(hidden_size=64)
    attach(other, LoraConfig())
    save_adapter(other, tmp_path)
    with pytest.raises(AdapterError):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "fields", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}], ids=repr
)
def test_a_second_adapter_loads_beside_one_on_the_embedding(fields, tmp_path):
    first = lorasmith.get_peft_model(llama(), LoraConfig(**fields)).eval()
    one = logits(shake(first))
    first.save_pretrained(tmp_path)
    model = lorasmith.PeftModel.from_pretrained(llama(), tmp_path, "x")
    model.load_adapter(tmp_path, "y")
    for name in ("x", "y"):
        model.set_adapter(name)
        assert torch.equal(model(input_ids=IDS).logits, one)


def test_an_adapter_with_other_embeddings_is_refused_beside_others(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    grown = llama()
    grown.resize_token_embeddings(70, mean_resizing=False)
    attach(grown, LoraConfig(base_model_name_or_path=str(tmp_path / "base")))
    save_adapter(grown, tmp_path / "adapter")
    model = lorasmith.get_peft_model(llama(), LoraConfig())
    with pytest.raises(AdapterError, match="other adapters stand"):
        model.load_adapter(tmp_path / "adapter", "grown")
    assert model.get_input_embeddings().weight.shape[0] == 64


def test_an_expression_that_is_none_names_its_field():
    with pytest.raises(AttachError, match="target_modules"):
        attach(llama(), LoraConfig(target_modules="q_proj("))


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_a_new_adapter_starts_from_the_base_and_not_from_what_was_merged_in_place(fields):
    model = llama()
    attach(model, LoraConfig(), "merged")
    shake(model)
    merge_in_place(model)
    book = attach(model, LoraConfig(**fields), "new")
    alone = attach(llama(), LoraConfig(**fields), "new")
    for key, value in alone.tensors("new").items():
        if "magnitude" in key or "init_lora_weights" in fields:
            assert torch.equal(book.tensors("new")[key], value)


def test_an_adapter_is_activated_and_merged_once():
    model = llama()
    book = attach(model, LoraConfig(), "a")
    with pytest.raises(AttachError, match="a, a: an adapter acts once"):
        book.activate(["a", "a"])
    with pytest.raises(AttachError, match="acts once"):
        merge_in_place(model, ["a", "a"])


def test_removing_an_idle_adapter_activates_none():
    model = llama()
    book, _ = two(model)
    book.activate([])
    book.remove("b")
    assert book.active == []
