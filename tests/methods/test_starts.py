"""The starts of LoRA: what each is by its paper, and that the model's function begins where the paper says."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import adapted as module_of_adapted
from lorasmith.attach import adapters_of, attach, load_adapter, merge_and_unload, save_adapter, unload
from lorasmith.errors import AttachError, InputError
from lorasmith.methods.inits import starts
from lorasmith.methods.inits.truncated import truncated_svd
from lorasmith.methods.lora import LoraConfig
from lorasmith.quantized import QuantizedLinear, Scheme
from tiny import llama, logits, quantized, shake

# s differs from 1, so that a forgotten scaling shows
FIELDS = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, "lora_alpha": 6}
SHIFTED = ["pissa", "pissa_niter_4", "olora"]
QUANTIZING = ["loftq", "qpissa"]
# a handful of f32 roundings of logits near 1
ROUNDING = {"atol": 2e-6, "rtol": 0}


def config(start, **fields):
    return LoraConfig(init_lora_weights=start, **(FIELDS | fields))


def adapted(start, base=llama, **fields):
    model = base()
    attach(model, config(start, **fields))
    return model


def site_of(start, layer=None, **fields):
    model = nn.Sequential(layer or nn.Linear(24, 20))
    book = attach(
        model, LoraConfig(init_lora_weights=start, target_modules=["0"], **({"r": 4, "lora_alpha": 6} | fields))
    )
    return model[0], book.sites("default")[0][1]


def decaying(out_features=20, in_features=24):
    """A layer whose singular values fall, as those of trained ones do."""
    layer = nn.Linear(in_features, out_features)
    u, _, vt = torch.linalg.svd(torch.randn(out_features, in_features), full_matrices=False)
    layer.weight.data = u @ torch.diag(2.0 ** -torch.arange(out_features)) @ vt
    return layer


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal", "eva", *SHIFTED])
def test_the_function_begins_as_the_bases(start):
    assert_close(logits(adapted(start)), logits(llama()), **ROUNDING)


def test_with_false_it_does_not():
    assert (logits(adapted(False)) - logits(llama())).abs().max() > 1e-3


def test_an_orthogonal_start_has_both_factors_and_no_product():
    _, site = site_of("orthogonal")
    a, b = site.lora_A.weight, site.lora_B.weight
    assert min(a.abs().max(), b.abs().max()) > 0.01
    assert_close(b @ a, torch.zeros(20, 24), atol=1e-6, rtol=0)
    with pytest.raises(AttachError, match="even"):
        site_of("orthogonal", r=3)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4"])
def test_pissa_takes_the_principal_part(start):
    layer = decaying()
    u, s, vt = torch.linalg.svd(layer.weight.detach())
    _, site = site_of(start, layer)
    part = site.scaling * site.lora_B.weight @ site.lora_A.weight
    # the random range of 14 of 20 dimensions holds the first 4 to rounding
    assert_close(part, u[:, :4] * s[:4] @ vt[:4], atol=1e-6, rtol=0)
    # either factor has the root of each singular value
    assert_close(site.lora_A.weight.norm(dim=1), (s[:4] / site.scaling).sqrt())
    assert_close(site.lora_B.weight.norm(dim=0), (s[:4] / site.scaling).sqrt())


def test_olora_takes_an_orthonormal_basis():
    layer = nn.Linear(24, 20)
    _, site = site_of("olora", layer)
    b = site.lora_B.weight
    assert_close(b.T @ b, torch.eye(4), atol=1e-6, rtol=0)
    # Q^T W is R, whose first rows are A
    assert_close(site.lora_A.weight, b.T @ layer.weight, atol=1e-6, rtol=0)


def test_the_random_range_is_near_the_best_and_the_same_every_time():
    torch.manual_seed(0)
    matrix = torch.randn(60, 50)
    best = truncated_svd(matrix, 5)[1]
    torch.manual_seed(1)
    once = truncated_svd(matrix, 5, 16)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(once, truncated_svd(matrix, 5, 16)))
    # a flat spectrum is the hardest case
    assert_close(once[1], best, rtol=1e-3, atol=0)


@pytest.mark.parametrize("start", SHIFTED)
@pytest.mark.parametrize("base", [llama, lambda: quantized(llama()), lambda: quantized(llama(), Scheme("int8"))])
def test_the_base_stays_bit_for_bit_and_two_such_adapters_swap(start, base):
    before = logits(base())
    model = adapted(start, base)
    one = logits(shake(model))
    attach(model, config(start, r=2), "second")
    two = logits(shake(model, 0.2))
    book = adapters_of(model)
    with book.disabled():
        assert torch.equal(logits(model), before)
    book.activate("default")
    assert torch.equal(logits(model), one)
    book.activate("second")
    assert torch.equal(logits(model), two)
    assert torch.equal(logits(unload(model)), before)


@pytest.mark.parametrize("start", SHIFTED)
def test_only_a_and_b_train_and_in_one_step(start, monkeypatch):
    taken = []
    step = module_of_adapted.adapted_linear
    monkeypatch.setattr(module_of_adapted, "adapted_linear", lambda *given: taken.append(1) or step(*given))
    model = adapted(start)
    book = adapters_of(model)
    assert {name.rpartition(".default")[0].rpartition(".")[2] for name, _ in book.trainable()} == {"lora_A", "lora_B"}
    model(input_ids=torch.randint(64, (2, 5))).logits.sum().backward()
    assert len(taken) == len(book.sites("default"))
    assert all(p.grad is not None for p in book.parameters("default"))


@pytest.mark.parametrize("start", SHIFTED)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_one_step_equals_the_parts(start, dropout):
    torch.manual_seed(3)
    layer, site = site_of(start, lora_dropout=dropout)
    shake(layer)
    layer.train()
    x = torch.randn(5, 24, requires_grad=True)
    results = []
    for way in (layer, lambda x: site.after(x, layer.base_layer(x), layer.base_weight)):
        torch.manual_seed(4)
        y = way(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, site.lora_A.weight, site.lora_B.weight])])
    for ours, parts in zip(*results):
        # other orders of f32 sums
        assert_close(ours, parts, atol=1e-4, rtol=1e-4)


def test_dropout_falls_on_the_change_alone():
    layer, _ = site_of("pissa", lora_dropout=0.5)
    layer.train()
    x = torch.randn(5, 24)
    # nothing has changed yet, so nothing is dropped
    assert_close(layer(x), layer.base_layer(x), atol=1e-5, rtol=0)


def test_without_gradients_the_factors_are_stacked_once(monkeypatch):
    model = shake(adapted("pissa"))
    first = logits(model)
    made = []
    kind = type(adapters_of(model).sites("default")[0][1])
    stacked = kind.factors
    monkeypatch.setattr(kind, "factors", lambda site: made.append(1) or stacked(site))
    assert torch.equal(logits(model), first)
    assert not made
    # as a training step does, through torch
    shake(model)
    assert not torch.equal(logits(model), first)
    assert len(made) == len(adapters_of(model).sites("default"))


def test_in_16_bits_it_still_begins_at_the_base():
    base = lambda: llama().to(torch.bfloat16)  # noqa: E731
    # one more rounding to 8 bits of logits below 1
    assert_close(logits(adapted("pissa", base)), logits(base()), atol=2**-7, rtol=0)


@pytest.mark.parametrize("start", SHIFTED)
def test_it_merges_exactly(start):
    model = shake(adapted(start))
    before = logits(model)
    assert_close(logits(merge_and_unload(model)), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", SHIFTED)
@pytest.mark.parametrize("stable", [False, True])
def test_saved_it_is_a_plain_lora_of_twice_the_rank(start, stable, tmp_path):
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    model = shake(adapted(start, use_rslora=stable, **patterns))
    save_adapter(model, tmp_path)
    other = llama()
    book = load_adapter(other, tmp_path)
    saved = book.configs["default"]
    assert (saved.init_lora_weights, saved.r, saved.rank_pattern) == (True, 8, {"q_proj": 4})
    assert_close(logits(other), logits(model), **ROUNDING)


@pytest.mark.parametrize("start", SHIFTED)
def test_an_attached_adapter_that_trains_on_takes_its_file_back(start, tmp_path):
    model = shake(adapted(start))
    save_adapter(model, tmp_path)
    fresh = adapted(start)
    before = {name: p for name, p in fresh.named_parameters() if p.requires_grad}
    load_adapter(fresh, tmp_path, trainable=True)
    after = {name: p for name, p in fresh.named_parameters() if p.requires_grad}
    # the very parameters, which an optimizer may hold
    assert all(after[name] is p for name, p in before.items())
    assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize("value", ["corda", "lora_ga", "mica", "psisa", "pissa_niter_many", "olora_niter_3"])
def test_other_starts_are_refused_by_name(value):
    with pytest.raises(AttachError, match=value):
        LoraConfig(init_lora_weights=value)


@pytest.mark.parametrize("start", [*SHIFTED, *QUANTIZING])
def test_a_rank_beyond_the_weights_is_refused(start):
    with pytest.raises(AttachError, match="r=21"):
        site_of(start, r=21)


@pytest.mark.parametrize("start", ["orthogonal", *SHIFTED, *QUANTIZING])
def test_a_convolution_is_refused(start):
    with pytest.raises(AttachError, match="convolutions"):
        site_of(start, nn.Conv1d(8, 8, 3))


@pytest.mark.parametrize("start", starts.names())
def test_every_start_stands_on_shapes_alone(start):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(24, 20))
    value = {"true": True, "false": False}.get(start, start)
    attach(model, LoraConfig(init_lora_weights=value, target_modules=["0"], r=4))
    assert all(p.is_meta for p in model.parameters())


def test_rows_of_one_batch_may_belong_to_such_adapters():
    model = shake(adapted("pissa"))
    attach(model, config("olora", r=2), "second")
    shake(model, 0.2)
    book = adapters_of(model)
    expected = []
    for row, name in enumerate(("default", "second")):
        book.activate(name)
        expected.append(logits(model)[row])
    with book.by_rows(["default", "second"]):
        mixed = logits(model)
    assert_close(mixed, torch.stack(expected), atol=1e-5, rtol=0)


# --- starts that quantize the base


def error(layer, site):
    held = layer.base_layer.dequantize(torch.float32) + site.scaling * site.lora_B.weight @ site.lora_A.weight
    return held.detach()


@pytest.mark.parametrize("start", QUANTIZING)
@pytest.mark.parametrize("form", ["nf4", "fp4", "int4", "int8"])
def test_the_layer_becomes_quantized_and_loses_less_than_by_quantizing_alone(start, form):
    dense = decaying(64, 64)
    weight = dense.weight.detach().clone()
    settings = {"format": form, "loftq_bits": 8 if form == "int8" else 4, "loftq_iter": 3}
    layer, site = site_of(start, dense, loftq_config=settings)
    assert layer.base_layer.scheme == Scheme(form, 64, False)
    plain = QuantizedLinear.from_float(nn.Linear(64, 64), layer.base_layer.scheme)
    plain.quantize_(weight)
    alone = (weight - plain.dequantize()).norm()
    assert (weight - error(layer, site)).norm() < 0.8 * alone


def test_loftq_of_one_iteration_is_plain_quantizing_and_the_best_fit_of_its_error():
    dense = decaying(64, 64)
    weight = dense.weight.detach().clone()
    layer, site = site_of("loftq", dense)
    plain = QuantizedLinear.from_float(nn.Linear(64, 64), layer.base_layer.scheme)
    plain.quantize_(weight)
    assert torch.equal(layer.base_layer.weight, plain.weight)
    u, s, vt = torch.linalg.svd(weight - plain.dequantize())
    assert_close(site.scaling * site.lora_B.weight @ site.lora_A.weight, u[:, :4] * s[:4] @ vt[:4], atol=1e-6, rtol=0)


def test_qpissa_of_one_iteration_quantizes_what_pissa_leaves():
    dense = decaying(64, 64)
    weight = dense.weight.detach().clone()
    layer, _ = site_of("qpissa", dense)
    u, s, vt = torch.linalg.svd(weight)
    plain = QuantizedLinear.from_float(nn.Linear(64, 64), layer.base_layer.scheme)
    plain.quantize_(weight - u[:, :4] * s[:4] @ vt[:4])
    # f32 roundings of the residual move hardly a value over a code's edge
    assert_close(layer.base_layer.dequantize(), plain.dequantize(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("start", QUANTIZING)
@pytest.mark.parametrize("iterations", [1, 3])
def test_saved_it_is_loaded_onto_the_dense_base_with_the_same_q(start, iterations, tmp_path):
    model = shake(adapted(start, loftq_config={"loftq_iter": iterations}))
    save_adapter(model, tmp_path)
    other = llama()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


def test_on_a_base_quantized_alike_loftq_of_one_iteration_is_at_home_and_others_are_refused(tmp_path):
    scheme = Scheme("nf4", 64, False)
    model = shake(adapted("loftq"))
    save_adapter(model, tmp_path / "one")
    other = quantized(llama(), scheme)
    load_adapter(other, tmp_path / "one")
    assert torch.equal(logits(other), logits(model))
    save_adapter(adapted("loftq", loftq_config={"loftq_iter": 2}), tmp_path / "two")
    for base, folder in ((quantized(llama(), scheme), "two"), (quantized(llama()), "one")):
        with pytest.raises(AttachError, match="load the dense base"):
            load_adapter(base, tmp_path / folder)


def test_a_quantized_base_is_not_quantized_again():
    with pytest.raises(AttachError, match="replace_lora_weights_loftq"):
        attach(quantized(llama()), config("loftq"))


def test_a_base_with_other_adapters_is_not_quantized_under_them():
    model = adapted(True)
    before = logits(model)
    with pytest.raises(AttachError, match="attach it alone, first"):
        attach(model, config("loftq"), "second")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loftq_bits": 2}, "loftq_bits=2"),
        ({"loftq_bits": 8, "format": "nf4"}, "give loftq_bits=4"),
        ({"loftq_iter": 0}, "at least 1"),
        ({"loftq_iters": 1}, "Did you mean 'loftq_iter'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LoraConfig(init_lora_weights="loftq", loftq_config=settings)


def test_settings_without_a_start_that_reads_them_are_refused():
    with pytest.raises(AttachError, match="loftq_config"):
        LoraConfig(loftq_config={"loftq_bits": 4})
