import pytest
import torch
from torch.testing import assert_close

from lorasmith.attach import attach, merge_and_unload, merge_in_place, unmerge
from lorasmith.errors import AttachError
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.prefix_tuning import PrefixTuningConfig
from lorasmith.methods.prompt_tuning import PromptTuningConfig
from tiny import llama, logits, quantized, shake


def test_merging_in_place_is_undone_bit_for_bit():
    model = llama()
    attach(model, LoraConfig(target_modules="all-linear"))
    adapted = logits(shake(model))
    weights = {name: p.clone() for name, p in model.named_parameters()}
    merge_in_place(model)
    # one rounding of the sum in f32
    assert_close(logits(model), adapted, atol=1e-5, rtol=0)
    unmerge(model)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert torch.equal(logits(model), adapted)


def test_merging_in_place_over_a_quantized_base_is_refused():
    model = quantized(llama())
    attach(model, LoraConfig())
    with pytest.raises(AttachError, match="quantized"):
        merge_in_place(model)


def test_a_merged_quantized_model_is_a_plain_dense_one(tmp_path):
    model = quantized(llama())
    attach(model, LoraConfig())
    adapted = logits(shake(model))
    merged = merge_and_unload(model)
    assert all(p.is_floating_point() for p in merged.parameters())
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(merged))
    assert_close(logits(again), adapted, atol=1e-5, rtol=0)


def test_merging_to_16_bit_rounds_each_weight_once():
    model = llama()
    book = attach(model, LoraConfig())
    shake(model)
    path, site = book.sites("default")[0]
    base = model.get_submodule(path).base_layer.weight.detach().clone()
    expected = (base + site.delta(base)).to(torch.bfloat16)
    merged = merge_and_unload(model, dtype=torch.bfloat16)
    assert torch.equal(merged.get_submodule(path).weight, expected)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_tied_weight_is_untied_by_its_merge_and_stays_right_after_reloading(target, tmp_path):
    model = llama(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    attach(model, LoraConfig(target_modules=[target]))
    adapted = logits(shake(model))
    merged = merge_and_unload(model)
    assert_close(logits(merged), adapted, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path)
    assert_close(logits(type(merged).from_pretrained(tmp_path)), adapted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_merging_a_tied_weight_in_place_is_refused(target):
    model = llama(tie_word_embeddings=True)
    attach(model, LoraConfig(target_modules=[target]))
    with pytest.raises(AttachError, match="shares its weight"):
        merge_in_place(model)


def test_a_whole_tied_head_is_untied_by_its_merge(tmp_path):
    model = llama(tie_word_embeddings=True)
    attach(model, LoraConfig(modules_to_save=["lm_head"]))
    adapted = logits(shake(model))
    merged = merge_and_unload(model)
    merged.save_pretrained(tmp_path)
    assert_close(logits(type(merged).from_pretrained(tmp_path)), adapted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_merging_for_good_takes_idle_prompts_off_too(config):
    model = llama()
    attach(model, config(num_virtual_tokens=3), "prompt")
    attach(model, LoraConfig(), "lora")
    merge_and_unload(model)
    assert not any("prompt" in key for key in model.state_dict())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
