"""EVA against exact decompositions, against the real PEFT, and in files."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lorasmith
from lorasmith.attach import adapters_of, attach, load_adapter, save_adapter
from lorasmith.attach.explained_variance import InputWatch, token_rows
from lorasmith.errors import AttachError
from lorasmith.methods.inits import EvaConfig, IncrementalSvd, shared_ranks
from lorasmith.methods.lora import LoraConfig
from lorasmith.quantized import Scheme
from tiny import llama, logits, quantized, shake

FIELDS = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, "init_lora_weights": "eva"}


def batches(count=6, rows=4, length=12):
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        ids = torch.randint(64, (rows, length), generator=generator)
        labels = ids.clone()
        labels[:, :2] = -100
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def begun(model=None, data=None, r=4, **settings):
    config = lorasmith.LoraConfig(eva_config=EvaConfig(**settings), **(FIELDS | {"r": r}))
    model = lorasmith.get_peft_model(model or llama(), config)
    lorasmith.initialize_lora_eva_weights(model, data or batches())
    return model


def same_directions(ours, theirs, tolerance):
    cosines = (ours * theirs).sum(1).abs() / (ours.norm(dim=1) * theirs.norm(dim=1))
    assert_close(cosines, torch.ones(len(ours)), atol=tolerance, rtol=0)


def test_batch_by_batch_the_decomposition_is_that_of_all_rows_together():
    torch.manual_seed(0)
    # all the directions are kept, so nothing is cut off between batches
    rows = torch.randn(90, 12) @ torch.diag(1.5 ** -torch.arange(12.0)) + torch.randn(12)
    svd = IncrementalSvd(12, 12, torch.device("cpu"))
    for part in rows.split(30):
        svd.add(part)
    centred = (rows - rows.mean(0)).double()
    _, singular, vt = torch.linalg.svd(centred, full_matrices=False)
    assert_close(svd.singular.double(), singular, rtol=1e-5, atol=1e-5)
    assert_close(svd.explained(), singular.square() / centred.square().sum(), rtol=1e-5, atol=1e-6)
    same_directions(svd.directions, vt.float(), 1e-5)


def test_with_fewer_directions_it_is_near():
    torch.manual_seed(0)
    rows = torch.randn(300, 40) @ torch.diag(1.5 ** -torch.arange(40.0))
    svd = IncrementalSvd(40, 6, torch.device("cpu"))
    for part in rows.split(50):
        svd.add(part)
    centred = rows - rows.mean(0)
    _, singular, vt = torch.linalg.svd(centred, full_matrices=False)
    # what lies outside of the kept directions is lost batch by batch
    assert_close(svd.explained().float(), (singular.square() / centred.square().sum())[:6], rtol=0.02, atol=0)
    same_directions(svd.directions[:3], vt[:3], 0.01)


def test_ranks_go_where_most_is_explained():
    shares = {"a": torch.tensor([0.5, 0.2, 0.1]), "b": torch.tensor([0.4, 0.3, 0.2]), "c": torch.tensor([0.05, 0.01])}
    assert shared_ranks(shares, 5) == {"a": 2, "b": 3, "c": 0}
    # of equals the earlier comes first
    assert shared_ranks(shares, 4) == {"a": 2, "b": 2, "c": 0}


def test_the_function_begins_as_the_bases():
    assert torch.equal(logits(begun()), logits(llama()))


@pytest.mark.parametrize("base", [llama, lambda: quantized(llama()), lambda: quantized(llama(), Scheme("int8"))])
def test_a_is_the_principal_directions_of_what_the_layer_reads(base):
    data = batches(1, rows=8)
    model = base()
    # 16 directions and as many to spare are all that 32 features have, so nothing is left to the random range
    attach(model, LoraConfig(eva_config=EvaConfig(rho=1.0), **(FIELDS | {"r": 16})))
    book = adapters_of(model)
    watch = InputWatch(book, "default")
    path = "model.layers.1.self_attn.o_proj"
    seen = []
    watch.run(data * 2, lambda batch: model(**batch), lambda batch: token_rows(batch, watch.settings))
    hook = dict(book.adapted())[path].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with book.disabled():
        model(**data[0])
    hook.remove()
    kept = data[0]["attention_mask"].bool() & (data[0]["labels"] != -100)
    rows = seen[0][kept].detach()
    vt = torch.linalg.svd(rows - rows.mean(0)).Vh
    a = watch.directions()[path]
    assert a.shape == (16, 32)
    same_directions(a[:4], vt[:4], 1e-4)


def test_layers_that_read_the_same_begin_at_the_same_directions():
    model = begun(rho=1.0)
    sites = dict(adapters_of(model.get_base_model()).sites("default"))
    q, k, o = (sites[f"model.layers.0.self_attn.{name}_proj"].lora_A.weight for name in "qko")
    assert torch.equal(q, k)
    assert not torch.equal(q, o)


def test_ranks_move_within_the_budget_and_scalings_stay():
    model = begun(rho=2.0)
    sites = dict(adapters_of(model.get_base_model()).sites("default"))
    ranks = [site.rank for site in sites.values()]
    assert sum(ranks) == 14 * 4
    assert len(set(ranks)) > 1 and max(ranks) <= 8
    assert {site.scaling for site in sites.values()} == {2.0}
    left = begun(rho=2.0, adjust_scaling_factors=False)
    scalings = {site.scaling for _, site in adapters_of(left.get_base_model()).sites("default")}
    assert len(scalings) > 1


def test_it_trains_and_saves_and_loads_with_its_ranks(tmp_path):
    model = shake(begun(rho=2.0))
    model(**batches(1)[0]).loss.backward()
    assert all(p.grad is not None for p in adapters_of(model.get_base_model()).parameters("default"))
    save_adapter(model.get_base_model(), tmp_path)
    other = llama()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


def test_a_layer_without_a_rank_loses_its_adapter(tmp_path):
    model = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**FIELDS))
    found = lorasmith.get_eva_state_dict(model, batches())
    name = "base_model.model.model.layers.1.mlp.down_proj"
    lorasmith.initialize_lora_eva_weights(model, eva_state_dict=found | {name: found[name][:0]})
    base = model.get_base_model()
    assert isinstance(base.model.layers[1].mlp.down_proj, nn.Linear)
    save_adapter(shake(base), tmp_path)
    other = llama()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(base))


def test_modes_and_hooks_are_as_they_were():
    model = llama().train()
    begun(model)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_enough_positions_it_says_so():
    with pytest.raises(AttachError, match="fewer positions that count than the 8 directions"):
        begun(data=batches(1, rows=1, length=6))
    with pytest.raises(AttachError, match="empty"):
        begun(data=iter(()))


def test_batches_of_few_positions_are_gathered():
    rows = batches(4, rows=1, length=6)
    pairs = [{key: torch.cat([one[key], two[key]]) for key in one} for one, two in (rows[:2], rows[2:])]
    apart, together = begun(data=rows, tau=1.0), begun(data=pairs, tau=1.0)
    for (name, ours), (_, theirs) in zip(apart.named_parameters(), together.named_parameters(), strict=True):
        assert_close(ours, theirs, msg=name)


def test_an_adapter_that_does_not_begin_by_it_is_refused():
    model = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(AttachError, match="init_lora_weights"):
        lorasmith.initialize_lora_eva_weights(model, batches())


def test_functions_of_the_callers_choose_the_rows():
    seen = []

    def rows(x, inputs, name):
        seen.append((name, x.shape, inputs))
        return x.reshape(-1, x.shape[-1])

    model = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**FIELDS))
    lorasmith.get_eva_state_dict(
        model,
        batches(),
        forward_fn=lambda model, inputs: model(input_ids=inputs["input_ids"]),
        prepare_model_inputs_fn=lambda inputs, config: config.r,
        prepare_layer_inputs_fn=rows,
    )
    assert ("model.layers.0.self_attn.q_proj", (4, 12, 32), 4) in seen


# --- the real PEFT


pytestmark = pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage=False")


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def theirs_begun(peft, data=None, r=4, **settings):
    config = peft.LoraConfig(eva_config=peft.EvaConfig(**settings), **(FIELDS | {"r": r}))
    model = peft.get_peft_model(llama(), config)
    peft.initialize_lora_eva_weights(model, data or batches(), show_progress_bar=False)
    return model


def test_batch_by_batch_the_decomposition_is_pefts():
    module = pytest.importorskip("peft.utils.incremental_pca")
    torch.manual_seed(0)
    parts = (torch.randn(160, 20) @ torch.diag(1.3 ** -torch.arange(20.0)) + torch.randn(20)).split(40)
    ours = IncrementalSvd(20, 10, torch.device("cpu"))
    theirs = module.IncrementalPCA(n_components=10, lowrank=True, lowrank_seed=42)
    for part in parts:
        ours.add(part)
        theirs.partial_fit(part)
    assert_close(ours.explained(), theirs.explained_variance_ratio_.double(), rtol=1e-4, atol=0)
    assert_close(ours.mean, theirs.mean_.double())
    same_directions(ours.directions[:6], theirs.components_[:6].float(), 1e-4)


def test_a_is_pefts_but_for_the_sign(peft):
    # with 16 directions of 32 features neither's random range leaves anything out; one batch again and again, since
    # PEFT takes a change of sign for a direction that still turns, and goes on for another number of batches
    data = batches(1, rows=8)
    theirs, ours = theirs_begun(peft, data, r=16, rho=1.0), begun(data=data, r=16, rho=1.0)
    others = dict(theirs.named_parameters())
    compared = [name for name, _ in ours.named_parameters() if "lora_A" in name and "down_proj" not in name]
    assert len(compared) == 12
    mine = dict(ours.named_parameters())
    for name in compared:
        same_directions(mine[name][:4].detach(), others[name][:4].detach(), 1e-4)


def test_ranks_are_pefts(peft):
    theirs, ours = theirs_begun(peft, rho=2.0), begun(rho=2.0)

    def ranks(model):
        # layers that read the same tie, and PEFT shares ties among them by chance
        found = {}
        for name, p in model.named_parameters():
            if "lora_A" in name:
                layer, module = name.partition("layers.")[2].split(".", 1)
                group = "in" if module.split(".")[1][0] in "qkv" else module.split(".")[1][0].replace("g", "u")
                found[layer, group] = found.get((layer, group), 0) + p.shape[0]
        return found

    assert sum(ranks(ours).values()) == sum(ranks(theirs).values())
    assert max(abs(ranks(ours)[key] - value) for key, value in ranks(theirs).items()) <= 1


def test_files_are_read_both_ways(peft, tmp_path):
    theirs = shake(theirs_begun(peft, rho=2.0)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    read = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "theirs")
    assert_close(logits(read), logits(theirs), atol=2e-6, rtol=0)
    ours = shake(begun(rho=2.0))
    ours.save_pretrained(tmp_path / "ours")
    assert_close(
        logits(peft.PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()), logits(ours), atol=2e-6, rtol=0
    )
