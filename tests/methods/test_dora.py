"""DoRA against its formula, against the real PEFT's gradients, and on every storage of the base."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import adapters_of, attach, load_adapter, merge_and_unload, save_adapter, unload
from lorasmith.errors import AttachError
from lorasmith.methods import dense_weight
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.lora.dora import DoraSite
from lorasmith.quantized import Scheme, quantize_module
from tiny import IDS, llama, logits, quantized, shake

BASES = {
    "dense": llama,
    "bf16": lambda: llama().to(torch.bfloat16),
    "nf4": lambda: quantized(llama()),
    "nf4, plain scales": lambda: quantized(llama(), Scheme("nf4", double_quant=False)),
    "int8": lambda: quantized(llama(), Scheme("int8")),
}
EXACT = {"atol": 2e-6, "rtol": 0}


def dora(**fields: object) -> LoraConfig:
    return LoraConfig(**({"use_dora": True, "target_modules": "all-linear", "r": 4, "lora_alpha": 6} | fields))


def sites(model: nn.Module, adapter: str = "default") -> dict[str, DoraSite]:
    return dict(adapters_of(model).sites(adapter))


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]


def test_a_new_adapter_leaves_the_function_as_it_is(base):
    before = logits(base())
    model = base()
    attach(model, dora())
    # the factor m / |W| is one within f32's rounding; 16-bit activations may round to the neighbour
    assert_close(logits(model), before, atol=2e-5 if before.dtype == torch.float32 else 2**-6, rtol=0)


def test_the_length_by_rows_is_that_of_the_dense_weight(base):
    model = base()
    attach(model, dora())
    shake(model)
    for path, site in sites(model).items():
        layer = model.get_submodule(path)
        a, b = site.lora_A.weight, site.lora_B.weight
        dense = dense_weight(layer.base_layer, torch.float32) + 1.5 * b @ a
        # three sums of squares in f32, taken apart
        assert_close(site._measured(layer.base_weight), dense.norm(dim=1), atol=0, rtol=2e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_the_output_is_that_of_the_formula(bias):
    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=bias)
    model = nn.Sequential(layer)
    attach(model, dora(target_modules=["0"]))
    shake(model, 0.3)
    (site,) = sites(model).values()
    weight = layer.weight + 1.5 * site.lora_B.weight @ site.lora_A.weight
    weight = site.lora_magnitude_vector.weight[:, None] * weight / weight.norm(dim=1, keepdim=True)
    x = torch.randn(5, 24)
    assert_close(model(x), nn.functional.linear(x, weight, layer.bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"target_modules": ["embed_tokens", "o_proj"]}], ids=["linear", "embedding"])
def test_gradients_are_those_of_peft(fields):
    peft = pytest.importorskip("peft")
    ours, theirs = llama(), peft.get_peft_model(llama(), peft.LoraConfig(**vars_of(dora(**fields))))
    attach(ours, dora(**fields))
    shake(ours)
    names = dict(theirs.named_parameters())
    mine = {_inside_peft(name): p for name, p in ours.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in mine.items():
            names[name].copy_(parameter)
    for model in (ours, theirs):
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert len(mine) == sum(p.requires_grad for p in names.values())
    for name, parameter in mine.items():
        # f32 sums through two layers in another order
        assert_close(parameter.grad, names[name].grad, atol=2e-6, rtol=1e-4)


def _inside_peft(name: str) -> str:
    # PEFT's embeddings hold bare parameters
    return f"base_model.model.{name.removesuffix('.weight') if 'lora_embedding' in name else name}"


def vars_of(config: LoraConfig) -> dict[str, object]:
    wanted = ("use_dora", "target_modules", "r", "lora_alpha")
    return {name: getattr(config, name) for name in wanted}


def test_gradients_on_a_quantized_base_are_those_on_its_dense_twin():
    packed, dense = quantized(llama()), llama()
    for path, module in packed.named_modules():
        if path.endswith("proj"):
            dense.get_submodule(path).weight.data.copy_(module.dequantize())
    for model in (packed, dense):
        torch.manual_seed(1)
        attach(model, dora())
        shake(model)
        model(input_ids=IDS, labels=IDS).loss.backward()
    others = dict(dense.named_parameters())
    for name, mine in packed.named_parameters():
        if mine.requires_grad:
            assert_close(mine.grad, others[name].grad, atol=2e-6, rtol=1e-4)


def test_dropout_falls_on_the_update_alone():
    model = nn.Sequential(nn.Linear(64, 64))
    attach(model, dora(target_modules=["0"], lora_dropout=0.5))
    # with B at zero nothing but the base is left
    x = torch.randn(4, 64)
    assert_close(model.train()(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    shake(model)
    assert not torch.equal(model.train()(x), model(x))


def test_switched_off_or_taken_off_the_base_is_bit_equal_again(base):
    before = logits(base())
    model = base()
    book = attach(model, dora())
    adapted = logits(shake(model))
    assert not torch.equal(adapted, before)
    with book.disabled():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(unload(model)), before)


def test_saved_and_loaded_the_logits_are_bit_equal(base, tmp_path):
    model = base()
    attach(model, dora())
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    other = base()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), adapted)


def test_merged_for_good_it_equals_the_adapter(base):
    model = base()
    attach(model, dora())
    adapted = logits(shake(model))
    merged = logits(merge_and_unload(model, dtype=torch.float32))
    # int8 and 16 bits also round activations as long as it is not merged
    rounds = base in (BASES["int8"], BASES["bf16"])
    assert_close(merged, adapted.float(), atol=0.03 if rounds else 1e-5, rtol=0)


# --- several adapters


def both(kinds: tuple[bool, bool]) -> nn.Module:
    model = llama()
    for number, use_dora in enumerate(kinds):
        attach(model, dora(use_dora=use_dora), f"adapter{number}")
        shake(model, 0.1 + 0.1 * number)
    adapters_of(model).activate(["adapter0", "adapter1"])
    return model


@pytest.mark.parametrize("kinds", [(False, True), (True, False), (True, True)])
def test_several_adapters_act_as_in_peft(kinds, tmp_path):
    peft = pytest.importorskip("peft")
    model = both(kinds)
    for name in ("adapter0", "adapter1"):
        save_adapter(model, tmp_path, name)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter0", adapter_name="adapter0")
    theirs.load_adapter(tmp_path / "adapter1", adapter_name="adapter1")
    theirs.base_model.set_adapter(["adapter0", "adapter1"])
    assert_close(logits(model), logits(theirs.eval()), **EXACT)


@pytest.mark.parametrize("kinds", [(False, True), (True, False), (True, True)])
def test_several_adapters_merge_as_they_act(kinds):
    model = both(kinds)
    adapted = logits(model)
    assert_close(logits(merge_and_unload(model)), adapted, atol=1e-5, rtol=0)


# --- what is kept of the lengths


def test_lengths_are_kept_while_nothing_changes_and_never_longer(monkeypatch):
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    attach(model, dora(target_modules=["0"]))
    (site,) = sites(model).values()
    x, measured = torch.randn(3, 8), DoraSite._measured
    calls = []
    monkeypatch.setattr(DoraSite, "_measured", lambda self, weight: calls.append(1) or measured(self, weight))

    def fresh() -> torch.Tensor:
        weight = model[0].base_layer.weight + 1.5 * site.lora_B.weight @ site.lora_A.weight
        return nn.functional.linear(
            x, site.lora_magnitude_vector.weight[:, None] * weight / weight.norm(dim=1)[:, None]
        )

    def check(new: int) -> None:
        calls.clear()
        with torch.no_grad():
            for _ in range(2):
                assert_close(model(x), fresh(), atol=1e-5, rtol=1e-5)
        assert len(calls) == new

    check(1)
    check(0)
    optimizer = torch.optim.SGD(list(site.parameters()), lr=0.5)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
    check(1)
    with torch.no_grad():
        model[0].base_layer.weight.mul_(3)
    check(1)
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})
    check(1)
    # unseen writes of a training loop are behind a forward with gradients
    model(x)
    site.lora_B.weight.data.mul_(2)
    check(1)


def test_an_empty_row_stays_empty():
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.data[3] = 0
    model = nn.Sequential(layer)
    attach(model, dora(target_modules=["0"]))
    y = model(torch.randn(2, 8))
    y.sum().backward()
    assert not y[:, 3].any()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_quantized_convolution_keeps_its_function_and_its_gradient():
    torch.manual_seed(0)
    conv = quantize_module(nn.Conv2d(4, 6, 3, padding=1), Scheme())
    model, x = nn.Sequential(conv), torch.randn(2, 4, 5, 5)
    before = conv(x)
    attach(model, dora(target_modules=["0"]))
    assert_close(model(x), before, atol=1e-5, rtol=1e-5)
    shake(model)(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_a_convolution_with_groups_is_refused():
    with pytest.raises(AttachError, match="groups"):
        attach(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), dora(target_modules=["0"]))


def test_a_compiler_sees_through_it():
    model = llama()
    attach(model, dora())
    expected = logits(shake(model))
    # the same operations; nothing is kept of what the compiler looked at
    assert_close(logits(torch.compile(model, backend="eager")), expected, **EXACT)
