import copy
import inspect
import json
import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import lorasmith
from lorasmith import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from tiny import IDS, bert, llama, logits, quantized, shake


def adapted(**fields: object) -> PeftModel:
    return shake(get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", **fields)).eval())


@pytest.fixture
def base_folder(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_real_peft_takes_it_for_its_own():
    peft = pytest.importorskip("peft")
    model = adapted()
    assert isinstance(model, peft.PeftModelForCausalLM)
    assert isinstance(model, PeftModel)


def test_forward_carries_the_signature_of_the_base():
    names = inspect.signature(adapted().forward).parameters
    assert {"input_ids", "attention_mask", "labels"} <= set(names)


def test_copies_and_pickles_are_whole_and_apart():
    model = adapted()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), logits(model))
        before = logits(model)
        twin.set_adapter("default")
        shake(twin)
        assert torch.equal(logits(model), before)
        assert not torch.equal(logits(twin), before)


def test_generation_uses_the_active_adapter():
    model = adapted()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = model.generate(input_ids=IDS, **options)
    with model.disable_adapter():
        assert not torch.equal(model.generate(input_ids=IDS, **options), made)
    assert torch.equal(model.generate(input_ids=IDS, **options), made)


def test_auto_class_loads_base_and_adapter(base_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    model = shake(get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")).eval())
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    assert type(again).__name__ == "PeftModelForCausalLM"


def test_auto_class_restores_the_classes_of_a_classifier(tmp_path):
    model = bert()
    model.base_model.save_pretrained(tmp_path / "encoder")
    config = LoraConfig(task_type="SEQ_CLS", base_model_name_or_path=str(tmp_path / "encoder"))
    wrapper = shake(get_peft_model(model, config))
    wrapper.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    wrapper.save_pretrained(tmp_path / "adapter")
    # the saved encoder says two classes, the default
    edit = json.loads((tmp_path / "encoder" / "config.json").read_text())
    edit = {name: value for name, value in edit.items() if name not in ("id2label", "label2id")}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(edit))
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(wrapper))
    assert again.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert again.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path / "adapter").eval()
    assert_close(logits(theirs), logits(wrapper), atol=2e-6, rtol=0)


def test_from_pretrained_freezes_unless_asked_to_train(tmp_path):
    adapted().save_pretrained(tmp_path)
    assert PeftModel.from_pretrained(llama(), tmp_path).get_nb_trainable_parameters()[0] == 0
    assert PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True).get_nb_trainable_parameters()[0] > 0


def test_adapters_are_added_switched_and_deleted(tmp_path):
    model = adapted()
    one = logits(model)
    model.add_adapter("two", LoraConfig(task_type="CAUSAL_LM", target_modules=["o_proj"]))
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), one)
    model.set_adapter("two")
    shake(model)
    two = logits(model)
    model.save_pretrained(tmp_path)
    model.delete_adapter("default")
    assert list(model.peft_config) == ["two"]
    fresh = PeftModel.from_pretrained(llama(), tmp_path)
    fresh.load_adapter(tmp_path / "two", "two")
    assert torch.equal(logits(fresh), one)
    fresh.set_adapter("two")
    assert torch.equal(logits(fresh), two)


def test_an_adapter_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'default'"):
        adapted().set_adapter("defualt")


def test_counts_over_a_quantized_base_are_of_logical_elements():
    dense = adapted().get_nb_trainable_parameters()
    model = get_peft_model(quantized(llama()), LoraConfig(task_type="CAUSAL_LM"))
    assert model.get_nb_trainable_parameters() == dense


def test_preparing_for_kbit_training_upcasts_nothing():
    model = quantized(llama().to(torch.bfloat16))
    before = {name: p.dtype for name, p in model.named_parameters()}
    prepared = lorasmith.prepare_model_for_kbit_training(model)
    assert {name: p.dtype for name, p in prepared.named_parameters()} == before
    assert not any(p.requires_grad for p in prepared.parameters())


def test_checkpointed_gradients_equal_plain_ones():
    grads = []
    for checkpointing in (False, True):
        model = lorasmith.prepare_model_for_kbit_training(quantized(llama()), checkpointing)
        wrapped = shake(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).train())
        wrapped(input_ids=IDS, labels=IDS).loss.backward()
        grads.append({name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        # the same operations in the same order
        assert_close(grads[1][name], grad, atol=1e-7, rtol=0)


def test_get_and_set_state_dict_round_trip():
    model, other = adapted(), get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM")).eval()
    lorasmith.set_peft_model_state_dict(other, lorasmith.get_peft_model_state_dict(model))
    assert torch.equal(logits(other), logits(model))


def test_a_pickle_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        adapted().save_pretrained(tmp_path, safe_serialization=False)
