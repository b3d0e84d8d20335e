"""SHiRA's places by gradients, against autograd on weights that train."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lorasmith
from lorasmith.attach import adapters_of, attach, load_adapter, save_adapter
from lorasmith.attach.weight_gradients import begin_at_gradients_
from lorasmith.errors import AttachError
from lorasmith.methods.shira import ShiraConfig
from lorasmith.models.activation_checkpointing import checkpoint_activations_
from lorasmith.quantized import QuantizedLinear, Scheme
from tiny import gpt2, llama, logits, quantized, shake

# what torch says of the sparse product in the backward
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        ids = torch.randint(64, (3, 10), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 7:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return made


def waiting(base, mask="gradient", **fields):
    attach(base, ShiraConfig(**({"r": 2, "mask_type": mask, "target_modules": "all-linear"} | fields)))
    return base


def begun(base, mask="gradient", **fields):
    model = waiting(base, mask, **fields)
    lorasmith.initialize_shira_masks(model, batches())
    return model


def sites(model):
    return dict(adapters_of(model).sites("default"))


def places(model):
    return {path: site.shira_indices.weight.clone() for path, site in sites(model).items()}


def dense_twin(model, make):
    """A model of plain layers that hold what the quantized ones of model dequantize to."""
    twin = make()
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            twin.get_submodule(path.replace(".base_layer", "")).weight.data = module.dequantize(torch.float32)
    return twin


def scores_by_autograd(model, mask):
    """|gradient| or |weight * gradient| of every weight, as [out, in]."""
    model.requires_grad_()
    for batch in batches():
        model(**batch).loss.backward()
    found = {}
    for path, module in model.named_modules():
        if hasattr(module, "weight") and module.weight.dim() == 2:
            gradient = module.weight.grad.T if type(module).__name__ == "Conv1D" else module.weight.grad
            weight = module.weight.detach().T if type(module).__name__ == "Conv1D" else module.weight.detach()
            found[path] = (gradient if mask == "gradient" else weight * gradient).abs()
    return found


def assert_largest(indices, scores):
    rows, columns = indices.long()
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[rows, columns] = True
    assert int(chosen.sum()) == indices.shape[1]
    # two sums of the same f32 products in another order may exchange neighbours at the edge
    assert scores[chosen].min() >= scores[~chosen].max() * (1 - 1e-4)


@pytest.mark.parametrize("mask", ["gradient", "snip"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_places_are_those_of_autograd_on_dense_weights(make, mask):
    found, scores = places(begun(make(), mask)), scores_by_autograd(make(), mask)
    assert len(found) >= 8
    for path, indices in found.items():
        assert_largest(indices, scores[path])


@pytest.mark.parametrize("mask", ["gradient", "snip"])
@pytest.mark.parametrize("scheme", [Scheme(), Scheme("int4")], ids=["nf4", "int4"])
def test_places_in_a_quantized_base_are_those_of_its_dequantized_twin(mask, scheme):
    model = begun(quantized(llama(), scheme), mask)
    scores = scores_by_autograd(dense_twin(model, llama), mask)
    for path, indices in places(model).items():
        assert_largest(indices, scores[path])


def test_the_masks_differ():
    chosen = [places(begun(llama(), mask)) for mask in ("gradient", "snip")]
    assert not any(torch.equal(one, chosen[1][path]) for path, one in chosen[0].items())


@pytest.mark.parametrize("most_bytes", [1, 4 * 32 * 32 * 3])
def test_layers_in_groups_sit_where_they_do_all_at_once(most_bytes):
    whole, parted, seen = begun(llama(), "snip"), waiting(llama(), "snip"), []

    def loss(batch):
        seen.append(1)
        return parted(**batch).loss

    # an iterator that can be read only once
    begin_at_gradients_(adapters_of(parted), "default", iter(batches()), loss, most_bytes=most_bytes)
    assert len(seen) > 3 * 3
    found = places(parted)
    assert all(torch.equal(indices, found[path]) for path, indices in places(whole).items())


def test_sums_of_no_more_than_a_group_exist_at_a_time(monkeypatch):
    alive, most = set(), []
    make = torch.zeros

    def counted(*given, **options):
        tensor = make(*given, **options)
        if tensor.dim() == 2 and tensor.dtype == torch.float32:
            alive.add(tensor.untyped_storage().data_ptr())
            most.append(len(alive))
        return tensor

    model = waiting(llama())
    begin_at = {path: site.begin_at_gradient for path, site in sites(model).items()}
    for path, site in sites(model).items():

        def taken(weight, gradient, path=path):
            begin_at[path](weight, gradient)
            alive.discard(gradient.untyped_storage().data_ptr())

        monkeypatch.setattr(site, "begin_at_gradient", taken)
    monkeypatch.setattr(torch, "zeros", counted)
    # three square layers of 32 x 32
    loss = lambda batch: model(**batch).loss  # noqa: E731
    begin_at_gradients_(adapters_of(model), "default", batches(), loss, most_bytes=4 * 32 * 32 * 3)
    assert max(most) <= 4


def test_recomputed_activations_give_the_same_places():
    plain, other = begun(llama()), waiting(llama())
    checkpoint_activations_(other)
    passes = []
    other.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    begin_at_gradients_(adapters_of(other), "default", batches(), lambda batch: other(**batch).loss, recompute=True)
    assert len(passes) == 2 * len(batches())
    found = places(other)
    assert all(torch.equal(indices, found[path]) for path, indices in places(plain).items())


def test_it_trains_and_saves_and_loads_with_its_places(tmp_path):
    model = begun(quantized(llama()))
    assert torch.equal(logits(model), logits(quantized(llama())))
    shake(model)
    model(**batches(1)[0]).loss.backward()
    assert all(p.grad is not None for p in adapters_of(model).parameters("default"))
    save_adapter(model, tmp_path)
    other = quantized(llama())
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    found = places(other)
    assert all(torch.equal(indices, found[path]) for path, indices in places(model).items())


@pytest.mark.parametrize("mask", ["gradient", "snip"])
def test_a_file_is_read_by_peft(tmp_path, mask):
    peft = pytest.importorskip("peft")
    config = ShiraConfig(r=2, mask_type=mask, task_type="CAUSAL_LM")
    ours = lorasmith.get_peft_model(llama(), config)
    lorasmith.initialize_shira_masks(ours, batches())
    shake(ours).save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path)
    # another order of the same f32 sums
    assert_close(logits(theirs), logits(ours), atol=2e-6, rtol=0)


class Broken(Exception):
    """Stands for an error in the middle of a batch."""


@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_is_left_as_it_was(breaks):
    model = waiting(llama().train())
    # a user's own tensor that trains beside the adapter
    model.model.norm.weight.requires_grad_()
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}

    def loss(batch):
        value = model(**batch).loss
        if breaks:
            value.register_hook(raising)
        return value

    def raising(gradient):
        raise Broken

    try:
        begin_at_gradients_(adapters_of(model), "default", batches(), loss)
    except Broken:
        assert breaks
    assert all(site.needs_data == breaks for site in sites(model).values())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert adapters_of(model).enabled
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_before_it_has_seen_data_it_changes_nothing_and_neither_trains_nor_saves(tmp_path):
    model = waiting(llama())
    assert torch.equal(logits(model), logits(llama()))
    with pytest.raises(
        AttachError, match=r"mask_type='gradient'.*has seen none; call lorasmith.initialize_shira_masks"
    ):
        model(**batches(1)[0])
    with pytest.raises(AttachError, match="initialize_shira_masks"):
        save_adapter(model, tmp_path)


def test_data_that_show_nothing_are_refused():
    with pytest.raises(AttachError, match="there is no batch of data"):
        lorasmith.initialize_shira_masks(waiting(llama()), [])
    without_labels = [{"input_ids": batch["input_ids"]} for batch in batches()]
    with pytest.raises(AttachError, match=r"no loss for a batch; put labels"):
        lorasmith.initialize_shira_masks(waiting(llama()), without_labels)
    # the head stands above the loss of hidden states, so no gradient comes to it
    model = waiting(llama(), target_modules=["lm_head"])
    with pytest.raises(AttachError, match="lm_head: no batch gives its weight a gradient"):
        lorasmith.initialize_shira_masks(model, batches(), lambda m, batch: m.model(batch["input_ids"])[0].sum())


def test_an_adapter_that_waits_for_no_data_is_refused():
    model = waiting(llama(), "random")
    with pytest.raises(AttachError, match="'default' waits for no data"):
        lorasmith.initialize_shira_masks(model, batches())


def test_16_bit_layers_sum_in_float32():
    model = waiting(llama().bfloat16())
    kept = {}
    for path, site in sites(model).items():
        site.begin_at_gradient = lambda weight, gradient, path=path: kept.update({path: gradient})
    with torch.autocast("cpu", torch.bfloat16):
        begin_at_gradients_(adapters_of(model), "default", batches(), lambda batch: model(**batch).loss)
    assert len(kept) == 14
    assert {gradient.dtype for gradient in kept.values()} == {torch.float32}
    # sums of products of 8 significant bits have more than that
    gradient = kept["model.layers.0.mlp.up_proj"]
    assert not torch.equal(gradient, gradient.bfloat16().float())


def test_layers_inside_a_plain_module_are_reached_through_a_function_of_the_callers():
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 4))
    attach(model, ShiraConfig(r=1, mask_type="gradient", target_modules=["0"]))
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    lorasmith.initialize_shira_masks(model, [x], lambda model, batch: model(batch).square().sum())
    assert not sites(model)["0"].needs_data
