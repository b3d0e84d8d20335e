"""Claims that hold for every method: a new file in methods/ is tested on arrival."""

import json
from dataclasses import fields

import pytest
import torch
from torch.testing import assert_close

from lorasmith.attach import (
    adapters_of,
    as_lora,
    attach,
    attach_content,
    content_of,
    load_adapter,
    merge_and_unload,
    save_adapter,
    split_card,
    unload,
    write_card,
)
from lorasmith.errors import AdapterError, AttachError, InputError
from lorasmith.methods import PeftType, SelectiveMethod, SiteMethod, methods, read_config
from lorasmith.planning import PlanSettings, plan
from lorasmith.quantized import Scheme
from tiny import bert, llama, logits, quantized, shake

# fields that a method needs beside the defaults of its family
FIELDS = {
    "p_tuning": {"num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM"},
    "prefix_tuning": {"num_virtual_tokens": 3, "prefix_projection": True},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "trainable_tokens": {"token_indices": [5, 42, 1]},
    "shira": {"r": 2},
}
BASES = {
    "llama": llama,
    "bert": bert,
    "llama in nf4": lambda: quantized(llama()),
    "bert in nf4": lambda: quantized(bert()),
    "llama in int8": lambda: quantized(llama(), Scheme("int8")),
}


def config_of(method: str, base: str):
    task = "SEQ_CLS" if base.startswith("bert") else "CAUSAL_LM"
    return methods[method].config_class(task_type=task, **FIELDS.get(method, {}))


@pytest.fixture(params=methods.names())
def method(request):
    return request.param


@pytest.fixture(params=BASES)
def base(request):
    return request.param


def test_every_trainable_tensor_gets_a_gradient_and_nothing_else_does(method, base):
    model = BASES[base]()
    book = attach(model, config_of(method, base))
    shake(model)
    model(input_ids=torch.randint(64, (2, 5))).logits.sum().backward()
    own = {id(p) for p in book.parameters("default")}
    assert {id(p) for p in model.parameters() if p.requires_grad} == own
    # keys' biases cancel in the softmax, so their gradient is zero, but it is there
    assert all(p.grad is not None for p in book.parameters("default"))
    assert all(p.grad is None for p in model.parameters() if id(p) not in own)


def test_switched_off_or_taken_off_the_base_is_bit_equal_again(method, base):
    before = logits(BASES[base]())
    model = BASES[base]()
    book = attach(model, config_of(method, base))
    shake(model)
    assert not torch.equal(logits(model), before)
    with book.disabled():
        assert torch.equal(logits(model), before)
    assert not torch.equal(logits(model), before)
    assert torch.equal(logits(unload(model)), before)


def test_saved_and_loaded_the_logits_are_bit_equal(method, base, tmp_path):
    model = BASES[base]()
    attach(model, config_of(method, base))
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    other = BASES[base]()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), adapted)
    assert not any(p.requires_grad for p in other.parameters())


def test_a_load_that_fails_over_an_adapter_leaves_model_and_adapter_as_they_were(method, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    model = llama()
    book = attach(model, config_of(method, "llama"))
    expected = logits(shake(model))
    save_adapter(model, tmp_path)
    before = {name: (p, p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    config, hooks = book.configs["default"], [len(module._forward_hooks) for module in model.modules()]
    monkeypatch.setattr("lorasmith.attach.files.load_adapter_state", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        load_adapter(model, tmp_path)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    # the very tensors, which an optimizer may hold
    assert all(after[name] is p and p.requires_grad == trains for name, (p, trains, _) in before.items())
    assert all(torch.equal(p, value) for p, _, value in before.values())
    assert book.configs == {"default": config} and book.active == ["default"]
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(logits(model), expected)


def test_merged_for_good_it_equals_the_adapter_or_refuses(method, base):
    model = BASES[base]()
    attach(model, config_of(method, base))
    adapted = logits(shake(model))
    try:
        merged = merge_and_unload(model)
    except AttachError as error:
        assert "cannot be merged" in str(error)
        return
    # one rounding of the weight in f32; int8 also rounds activations as long as it is not merged
    assert_close(logits(merged), adapted, atol=0.02 if "int8" in base else 1e-5, rtol=0)


def test_two_adapters_swap_without_mixing(method):
    model = llama()
    first = attach(model, config_of(method, "llama"), "first")
    one = logits(shake(model))
    attach(model, config_of(method, "llama"), "second")
    two = logits(shake(model, 0.2))
    book = adapters_of(model)
    assert book is first
    book.activate("first")
    assert torch.equal(logits(model), one)
    book.activate("second")
    assert torch.equal(logits(model), two)
    book.remove("second")
    book.activate("first")
    assert torch.equal(logits(model), one)


def test_rows_of_one_batch_have_adapters_of_their_own_or_are_refused(method):
    model = llama()
    for number, name in enumerate(["one", "other"]):
        attach(model, config_of(method, "llama"), name)
        shake(model, 0.1 + 0.1 * number)
    book = adapters_of(model)
    names = ["other", "__base__", "one", "other"]
    ids = torch.randint(64, (4, 5), generator=torch.Generator().manual_seed(0))
    if not isinstance(methods[method], SiteMethod):
        with pytest.raises(AttachError, match="its own batch"), book.by_rows(names):
            raise AssertionError("not refused")
        return
    with book.by_rows(names):
        together = logits(model, ids)
    for row, name in enumerate(names):
        with book.by_rows([name]):
            # sums of f32 in another order
            assert_close(together[row], logits(model, ids[row : row + 1])[0], atol=5e-6, rtol=0)


def test_a_16_bit_base_keeps_float32_adapters_and_gives_16_bit_logits(method):
    model = llama().to(torch.bfloat16)
    book = attach(model, config_of(method, "llama"))
    if not isinstance(methods[method], SelectiveMethod):
        assert {p.dtype for p in book.parameters("default")} == {torch.float32}
    assert logits(shake(model)).dtype == torch.bfloat16


def test_as_a_lora_of_full_rank_it_does_the_same_or_has_none(method):
    model = llama()
    attach(model, config_of(method, "llama"))
    adapted = logits(shake(model))
    try:
        content = as_lora(model, "default", 48)
    except AttachError as error:
        assert "LoRA" in str(error)
        return
    other = llama()
    attach_content(other, content)
    # a decomposition in f32 and back
    assert_close(logits(other), adapted, atol=1e-4, rtol=0)


def test_its_page_says_what_it_is_and_how_it_is_loaded(method, tmp_path):
    model = llama()
    book = attach(model, config_of(method, "llama"))
    write_card(tmp_path, content_of(book, "default"))
    front, body = split_card((tmp_path / "README.md").read_text())
    name = methods[method].peft_type
    assert front["library_name"] == ("peft" if name in list(PeftType) else "lorasmith")
    assert f"made with {name} in" in body
    assert "PeftModel" in body


def test_the_memory_of_a_step_is_planned_without_a_word(method, capfd):
    model = llama()
    attach(model, config_of(method, "llama"))
    found = plan(model, PlanSettings(batch_size=2, length=8, baseline=0)).components
    assert found["activations kept for backward"] and found["trainable parameters"]
    assert capfd.readouterr().err == ""


def test_configs_survive_their_json(method):
    config = config_of(method, "llama")
    again = type(config).from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_a_field_given_as_null_means_nothing_given_or_is_refused_by_its_name(method, tmp_path):
    kind, path = methods[method].config_class, tmp_path / "adapter_config.json"
    values = config_of(method, "llama").to_dict() | {"peft_type": methods[method].peft_type}
    for field in fields(kind):
        if field.name == "peft_type":
            continue
        path.write_text(json.dumps(values | {field.name: None}))
        try:
            read_config(tmp_path)
        except AdapterError as error:
            assert str(error).startswith(f"{path}: {field.name}=None")
        else:
            values[field.name] = None
    # with every null that was taken
    attach(llama(), kind.from_dict(values))


def test_a_number_given_as_text_is_refused_by_its_field(method):
    kind = methods[method].config_class
    for field in fields(kind):
        if field.type in (int, float):
            with pytest.raises(AdapterError, match=f"^{field.name}='8' must be a (whole )?number"):
                kind(**FIELDS.get(method, {}) | {field.name: "8"})


def test_a_null_inside_a_pattern_or_a_start_of_lora_is_refused_by_its_field():
    for given, field in (
        ({"rank_pattern": {"q_proj": None}}, "rank_pattern"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": None}}, "loftq_bits"),
        ({"init_lora_weights": "eva", "eva_config": {"rho": None}}, "rho"),
        ({"init_lora_weights": "eva", "eva_config": {"roh": 2}}, "eva_config has no field 'roh'"),
    ):
        with pytest.raises(InputError, match=field):
            methods["lora"].config_class(**given)


def test_unknown_fields_are_dropped_with_a_warning_that_names_them(method, caplog):
    config = config_of(method, "llama")
    type(config).from_dict(config.to_dict() | {"from_the_future": 3})
    assert "from_the_future" in caplog.text
