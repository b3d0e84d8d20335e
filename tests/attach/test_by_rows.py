"""One batch, many adapters: each row is as in a batch of its adapter alone, and so are the gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import BASE, Adapters, adapters_of, attach, by_rows, load_adapter, save_adapter
from lorasmith.errors import AttachError
from lorasmith.methods.bottleneck import BottleneckConfig
from lorasmith.methods.full import FullConfig
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.prompt_tuning import PromptTuningConfig
from lorasmith.ops import library
from tiny import llama, logits, quantized, shake

# f32 sums in another order, through two layers
EXACT = {"atol": 5e-6, "rtol": 1e-4}
IDS = torch.randint(1, 64, (6, 5), generator=torch.Generator().manual_seed(0))
SCATTERED = ["a", "b", BASE, "a", "c", "b"]
RUNS = ["c", "a", "a", "a", BASE, "b"]

LORA = {
    "a": LoraConfig(r=4, target_modules="all-linear"),
    "b": LoraConfig(r=3, lora_alpha=20, use_rslora=True, target_modules=["q_proj", "down_proj"]),
    "c": LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"]),
}
KINDS = {
    "lora": LORA,
    "dora among them": LORA | {"b": LoraConfig(r=3, use_dora=True, target_modules="all-linear")},
    "lora, ia3, bottleneck": LORA | {"b": IA3Config(), "c": BottleneckConfig(target_modules=["o_proj", "down_proj"])},
    "embedding and head": LORA
    | {
        "b": LoraConfig(r=3, target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"]),
        "c": LoraConfig(r=2, use_dora=True, target_modules=["embed_tokens"], lora_bias=False),
    },
}


def adapted(configs: dict, base=llama) -> nn.Module:
    model = base()
    for number, (name, config) in enumerate(configs.items()):
        torch.manual_seed(number)
        attach(model, copy.deepcopy(config), name)
        shake(model, 0.1 + 0.05 * number)
    adapters_of(model).activate(list(configs))
    return model


def alone(model: nn.Module, name: str) -> torch.Tensor:
    """The logits of every row with one adapter."""
    book = adapters_of(model)
    active = list(book.active)
    if name == BASE:
        with book.disabled():
            return logits(model, IDS)
    book.activate(name)
    found = logits(model, IDS)
    book.activate(active)
    return found


@pytest.fixture(params=["stacked", "apart", "segments"])
def way(request, monkeypatch):
    """Every way of computing low-rank updates, whatever the sizes and the device."""
    if request.param == "segments":
        monkeypatch.setitem(library.NATIVE_KERNELS, "segmented_project", {"cpu"})
    monkeypatch.setattr(by_rows, "STACKED_WORK", 1e12 if request.param == "stacked" else 0)


@pytest.mark.parametrize("base", [llama, lambda: quantized(llama())], ids=["dense", "nf4"])
@pytest.mark.parametrize("names", [SCATTERED, RUNS], ids=["scattered", "runs"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_as_with_its_adapter_alone(kind, names, base, way):
    model = adapted(KINDS[kind], base)
    with adapters_of(model).by_rows(names):
        together = logits(model, IDS)
    for name in set(names):
        own = [row for row, other in enumerate(names) if other == name]
        assert_close(together[own], alone(model, name)[own], **EXACT)


@pytest.mark.parametrize("names", [SCATTERED, RUNS], ids=["scattered", "runs"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_separate_batches(kind, names, way):
    model = adapted(KINDS[kind])
    book = adapters_of(model)
    with book.by_rows(names):
        together = model(input_ids=IDS).logits.square()
    together.sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    for name in set(names) - {BASE}:
        with book.by_rows([name]):
            own = [row for row, other in enumerate(names) if other == name]
            model(input_ids=IDS[own]).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # an adapter that is at no module of this kind has none either way
            assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_in_16_bits_rows_are_as_with_their_adapter_alone():
    model = adapted(KINDS["dora among them"], lambda: llama().to(torch.bfloat16))
    with adapters_of(model).by_rows(SCATTERED):
        together = logits(model, IDS)
    for row, name in enumerate(SCATTERED):
        # activations of size one, rounded to 8 bits some times
        assert_close(together[row], alone(model, name)[row], atol=2**-5, rtol=0)


def test_names_may_be_for_the_tokens_of_one_row(way):
    model = adapted(KINDS["dora among them"])
    book = adapters_of(model)
    layer, x = model.model.layers[0].self_attn.q_proj, torch.randn(1, 6, 32)
    with book.by_rows(SCATTERED, per_token=True):
        together = layer(x)
    with book.by_rows(SCATTERED):
        assert_close(together[0], layer(x[0]), **EXACT)


def test_generation_may_repeat_rows_and_other_counts_are_refused():
    model = adapted(LORA)
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(6, 2, 32)
    with adapters_of(model).by_rows(SCATTERED, repeats=2):
        once = layer(x)
        assert_close(layer(x.repeat_interleave(2, 0)), once.repeat_interleave(2, 0), **EXACT)
        with pytest.raises(AttachError, match=r"\[18, 2, 32\] where adapters are named for 6 rows"):
            layer(x.repeat_interleave(3, 0))


def test_dropout_of_its_own_falls_on_an_adapters_rows():
    model = adapted({"a": LoraConfig(lora_dropout=0.5), "b": LoraConfig()}).train()
    with adapters_of(model).by_rows(["a", "b"] * 3):
        one, other = logits(model, IDS), logits(model, IDS)
    assert torch.equal(one[1::2], other[1::2])
    assert not torch.equal(one[::2], other[::2])


# --- what is kept


def test_stacked_factors_are_kept_and_never_stale(monkeypatch, tmp_path):
    model = adapted(KINDS["dora among them"])
    book = adapters_of(model)
    monkeypatch.setattr(by_rows, "STACKED_WORK", 1e12)
    stacked, calls = by_rows._stack, []
    monkeypatch.setattr(by_rows, "_stack", lambda updates: calls.append(1) or stacked(updates))

    def check(*, anew: bool, names: list[str] = SCATTERED) -> None:
        calls.clear()
        with book.by_rows(names):
            together = logits(model, IDS)
        assert bool(calls) == anew
        for row, name in enumerate(names):
            assert_close(together[row], alone(model, name)[row], **EXACT)

    check(anew=True)
    check(anew=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    check(anew=True)
    save_adapter(model, tmp_path, "b")
    shake(model)
    check(anew=True)
    load_adapter(model, tmp_path / "b", "b")
    check(anew=True)
    book.remove("c")
    attach(model, LoraConfig(r=2, init_lora_weights=False), "c")
    check(anew=True)
    check(anew=False)
    # the same adapters in the same order, but the base's rows stand elsewhere
    check(anew=True, names=[BASE, *SCATTERED[:2], *SCATTERED[3:]])


def test_an_adapter_that_is_not_finite_spoils_no_rows_of_others(way):
    model = adapted(LORA)
    for parameter in adapters_of(model).parameters("b"):
        parameter.data.fill_(float("inf"))
    with adapters_of(model).by_rows(SCATTERED):
        together = logits(model, IDS)
    for row, name in enumerate(SCATTERED):
        assert bool(together[row].isfinite().all()) == (name != "b")


def test_the_block_leaves_everything_as_it_was():
    model = adapted(LORA)
    book = adapters_of(model)
    before, expected = logits(model, IDS), alone(model, "a")
    with pytest.raises(ZeroDivisionError), book.by_rows(SCATTERED):
        with book.by_rows(["a"]):
            inner = logits(model, IDS)
        assert_close(inner, expected, **EXACT)
        raise ZeroDivisionError
    assert torch.equal(logits(model, IDS), before)


def test_trained_biases_and_prompts_of_active_adapters_do_not_reach_named_rows():
    model = llama()
    attach(model, LoraConfig(), "a")
    shake(model)
    expected = logits(model, IDS)
    for name, config in {"biases": LoraConfig(bias="all"), "prompt": PromptTuningConfig(num_virtual_tokens=3)}.items():
        attach(model, config, name)
        shake(model)
        changed = logits(model, IDS)
        with adapters_of(model).by_rows(["a"] * 5 + [BASE]):
            assert_close(logits(model, IDS)[:5], expected[:5], **EXACT)
        assert torch.equal(logits(model, IDS), changed)


# --- what cannot be


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "z"], "adapter 'z' does not exist; there are: a"),
        (["a", "prompt"], "PROMPT_TUNING.* its own batch"),
        (["a", "full"], "FULL.* its own batch"),
        (["a", "biases"], "trains tensors of the base"),
        ("a", "give a list"),
        ([], "give a list"),
    ],
)
def test_what_has_no_rows_of_its_own_is_refused(names, message):
    model = llama()
    attach(model, LoraConfig(), "a")
    attach(model, LoraConfig(bias="all"), "biases")
    attach(model, PromptTuningConfig(num_virtual_tokens=3), "prompt")
    attach(model, FullConfig(target_modules=["norm"]), "full")
    book: Adapters = adapters_of(model)
    with pytest.raises(AttachError, match=message), book.by_rows(names):
        raise AssertionError("not refused")


def test_adapters_merged_in_place_are_refused():
    model = adapted(LORA)
    model.model.layers[0].self_attn.q_proj.merge_(["a"])
    with pytest.raises(AttachError, match="unmerge first"), adapters_of(model).by_rows(["a", "b"]):
        raise AssertionError("not refused")


def test_switching_off_and_on_inside_keeps_active_biases_and_prompts_from_named_rows():
    model = llama()
    book = attach(model, LoraConfig(), "a")
    shake(model)
    for name, config in {"biases": LoraConfig(bias="all"), "prompt": PromptTuningConfig(num_virtual_tokens=3)}.items():
        attach(model, config, name)
        shake(model)
        with book.by_rows(["a"] * 5 + [BASE]):
            before = logits(model, IDS)
            with book.disabled():
                pass
            assert torch.equal(logits(model, IDS), before)
