import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lorasmith
from lorasmith import BOFTConfig
from lorasmith.attach import attach, merge_and_unload
from lorasmith.errors import AttachError
from lorasmith.methods.boft import butterfly, gathered
from tiny import llama, logits, shake


def on(layer: nn.Module, **fields: object) -> nn.Module:
    model = nn.Sequential(layer)
    attach(model, BOFTConfig(**({"target_modules": ["0"]} | fields)))
    return shake(model)


def peft_layer():
    pytest.importorskip("peft")
    from peft.tuners.boft.layer import BOFTLayer

    return BOFTLayer(nn.Linear(4, 4))


@pytest.mark.parametrize(("features", "size", "factors"), [(16, 4, 3), (32, 4, 2), (48, 2, 4), (24, 6, 2)])
def test_features_are_taken_in_pefts_order(features, size, factors):
    for factor in range(factors):
        wanted = peft_layer().block_butterfly_perm(features, features // size // 2**factor, size // 2, factors - 1)
        assert torch.equal(butterfly(torch.arange(features), size, factor), wanted)
        assert torch.equal(gathered(wanted, size, factor), torch.arange(features))


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_turning_the_input_is_multiplying_by_pefts_matrix(factors):
    theirs = peft_layer()
    layer = nn.Linear(16, 5)
    model = on(layer, boft_n_butterfly_factor=factors)
    [(_, site)] = model.adapters_book.sites("default")
    blocks = theirs.cayley_batch(site.boft_R.weight.detach().flatten(0, 1)).unflatten(0, (factors, -1))
    whole = torch.eye(16)
    for factor in range(factors):
        order = theirs.perm2mat(theirs.block_butterfly_perm(16, 4 // 2**factor, 2, factors - 1))
        whole = order @ torch.block_diag(*blocks[factor]) @ order.T @ whole
    x = torch.randn(7, 16)
    wanted = (x @ whole @ layer.weight.T) * site.boft_s.weight.flatten() + layer.bias
    assert_close(model(x), wanted, atol=1e-5, rtol=0)
    assert_close(whole @ whole.T, torch.eye(16), atol=1e-5, rtol=0)
    # two orders of the same f32 sums
    assert_close(merge_and_unload(model)(x), wanted, atol=1e-5, rtol=0)


def test_with_three_factors_every_feature_reaches_every_feature_of_its_group():
    model = on(nn.Linear(16, 16, bias=False), boft_n_butterfly_factor=3)
    [(_, site)] = model.adapters_book.sites("default")
    assert (site.before(torch.eye(16)).abs() > 1e-6).all()
    single = on(nn.Linear(16, 16, bias=False)).adapters_book.sites("default")[0][1]
    assert (single.before(torch.eye(16)).abs() > 1e-6).sum() == 16 * 4


@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning")
def test_a_file_of_one_factor_under_a_config_of_two_is_read(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.BOFTConfig(boft_n_butterfly_factor=2, task_type="CAUSAL_LM")
    theirs = shake(peft.get_peft_model(llama(), config).eval())
    theirs.save_pretrained(tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(llama(), tmp_path)
    assert_close(logits(ours), logits(theirs), atol=2e-6, rtol=0)


def test_dropout_leaves_a_share_of_one_factors_blocks_as_they_are_while_training():
    model = on(nn.Linear(64, 8), boft_n_butterfly_factor=2, boft_dropout=0.3)
    [(_, site)] = model.adapters_book.sites("default")
    model.train()
    still = (site.rotations() - torch.eye(4)).abs().amax((2, 3)) == 0
    assert sorted(still.sum(1).tolist()) == [0, int(0.3 * 16)]
    model.eval()
    assert not ((site.rotations() - torch.eye(4)).abs().amax((2, 3)) == 0).any()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"boft_block_num": 4}, "boft_block_size=4, boft_block_num=4"),
        ({"boft_n_butterfly_factor": 0}, "boft_n_butterfly_factor=0"),
        ({"boft_dropout": 1.0}, "boft_dropout=1.0"),
        ({"bias": "x"}, "bias='x'"),
    ],
)
def test_values_out_of_range_are_refused(fields, said):
    with pytest.raises(AttachError, match=said):
        BOFTConfig(**fields)


@pytest.mark.parametrize("fields", [{"boft_block_size": 5}, {"boft_block_size": 4, "boft_n_butterfly_factor": 4}])
def test_blocks_and_butterflies_that_do_not_fit_are_refused(fields):
    with pytest.raises(AttachError, match="16 features"):
        on(nn.Linear(16, 4), **fields)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotations_of_16_bit_tensors_are_solved_in_float32(dtype):
    model = llama().to(dtype)
    book = attach(model, BOFTConfig(target_modules=["q_proj"], boft_block_size=8), float32=False)
    shake(model)
    (_, site), *_ = book.sites("default")
    assert site.boft_R.weight.dtype == dtype
    rotation = site.rotations()[0, 0]
    # orthogonal to a few roundings of f32
    assert_close(rotation @ rotation.T, torch.eye(8), atol=1e-6, rtol=0)
    assert logits(model).isfinite().all()
