import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.testing import assert_close

import lorasmith
from lorasmith import OFTConfig
from lorasmith.attach import attach, load_adapter, merge_and_unload, save_adapter
from lorasmith.errors import AttachError
from tiny import IDS, llama, logits, shake

EXACT = {"use_cayley_neumann": False, "target_modules": ["0"]}


def on(layer: nn.Module, **fields: object) -> nn.Module:
    model = nn.Sequential(layer)
    attach(model, OFTConfig(**({"target_modules": ["0"], "oft_block_size": 4} | fields)))
    return shake(model)


def test_rotations_are_orthogonal():
    [(_, site)] = on(nn.Linear(12, 8), **EXACT).adapters_book.sites("default")
    rotations = site.rotations()
    assert rotations.shape == (3, 4, 4)
    assert_close(rotations @ rotations.mT, torch.eye(4).expand(3, 4, 4), atol=1e-6, rtol=0)


def test_the_angles_and_lengths_of_a_merged_weights_rows_are_those_of_the_base():
    layer = nn.Linear(12, 8)
    rows = layer.weight.detach().clone()
    merged = merge_and_unload(on(layer, **EXACT))[0].weight
    assert (merged - rows).abs().max() > 0.01
    assert_close(merged @ merged.T, rows @ rows.T, atol=1e-5, rtol=0)
    assert_close(normalize(merged) @ normalize(merged).T, normalize(rows) @ normalize(rows).T, atol=1e-5, rtol=0)


def test_the_series_comes_near_the_exact_rotation_of_the_opposite_angle():
    [(_, series)] = on(nn.Linear(12, 8), num_cayley_neumann_terms=30).adapters_book.sites("default")
    [(_, exact)] = on(nn.Linear(12, 8), **EXACT).adapters_book.sites("default")
    assert_close(series.rotations(), exact.rotations().mT, atol=1e-5, rtol=0)


def conv_pair() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.Conv2d(6, 3, 1))


def test_a_convolution_unmerged_equals_it_merged_and_pefts_merged_one(tmp_path):
    peft = pytest.importorskip("peft")
    fields = {"target_modules": ["0", "1"], "oft_block_size": 6}
    theirs = shake(peft.get_peft_model(conv_pair(), peft.OFTConfig(**fields)).eval())
    theirs.save_pretrained(tmp_path)
    ours = conv_pair()
    load_adapter(ours, tmp_path)
    x = torch.randn(2, 4, 7, 7)
    adapted = ours(x)
    assert_close(theirs.merge_and_unload()(x), adapted, atol=1e-5, rtol=0)
    assert_close(merge_and_unload(ours)(x), adapted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("asked", [{"oft_block_size": 5}, {"oft_block_size": 100}, {"oft_block_size": 0, "r": 7}])
@pytest.mark.filterwarnings("ignore:Invalid .*Adjusted:UserWarning")
def test_sizes_that_do_not_divide_give_way_as_in_peft(asked, caplog):
    peft = pytest.importorskip("peft")
    fields = {"target_modules": ["q_proj", "down_proj"]} | asked
    theirs = peft.get_peft_model(llama(), peft.OFTConfig(**fields))
    ours = lorasmith.get_peft_model(llama(), OFTConfig(**fields))
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    assert "does not divide" in caplog.text


def test_dropout_leaves_a_share_of_the_blocks_as_they_are_while_training():
    model = on(nn.Linear(40, 8), module_dropout=0.35)
    [(_, site)] = model.adapters_book.sites("default")
    model.train()
    still = (site.rotations() - torch.eye(4)).abs().amax((1, 2)) == 0
    assert still.sum() == int(0.35 * 10)
    model.eval()
    assert not ((site.rotations() - torch.eye(4)).abs().amax((1, 2)) == 0).any()


def test_constrained_training_takes_pefts_steps():
    peft = pytest.importorskip("peft")
    fields = {"target_modules": ["q_proj", "down_proj"], "oft_block_size": 8, "coft": True, "eps": 0.05}
    states = []
    for build in (peft, lorasmith):
        model = build.get_peft_model(llama(), build.OFTConfig(**fields))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.5)
        for _ in range(3):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append(build.get_peft_model_state_dict(model))
    assert states[0].keys() == states[1].keys()
    assert max(value.norm() for value in states[0].values()) > 0.01
    for key, value in states[0].items():
        assert_close(states[1][key], value, atol=1e-6, rtol=1e-4)


def test_a_16_bit_input_is_turned_in_float32():
    x = torch.randn(50, 8).bfloat16()
    model = on(nn.Linear(8, 8).bfloat16())
    [(_, site)] = model.adapters_book.sites("default")
    with torch.no_grad():
        site.oft_R.weight.mul_(0.03)
    exact = (x.float().view(50, 2, 4).transpose(0, 1) @ site.rotations()).transpose(0, 1).reshape(50, 8)
    assert torch.equal(site.before(x), exact.bfloat16())


def test_a_file_says_since_which_peft_the_series_is_what_it_is(tmp_path, caplog):
    model = llama()
    attach(model, OFTConfig(task_type="CAUSAL_LM"))
    save_adapter(model, tmp_path)
    load_adapter(llama(), tmp_path)
    assert "before PEFT 0.18" not in caplog.text
    OFTConfig.from_dict({"oft_block_size": 32, "use_cayley_neumann": True})
    assert "before PEFT 0.18" in caplog.text


@pytest.mark.parametrize(
    "fields", [{"r": 4}, {"oft_block_size": 0}, {"module_dropout": 1.0}, {"bias": "x"}, {"num_cayley_neumann_terms": 1}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(AttachError, match=next(iter(fields))):
        OFTConfig(**fields)


def test_switching_off_needs_no_merge():
    model = llama()
    base = logits(model)
    book = attach(model, OFTConfig(target_modules="all-linear", oft_block_size=8))
    # zero angles turn nothing
    assert_close(logits(model), base, atol=1e-6, rtol=0)
    shake(model)
    with book.disabled():
        assert torch.equal(logits(model), base)
