import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import lorasmith
from lorasmith import LoHaConfig, LoKrConfig
from lorasmith.attach import attach, merge_and_unload
from lorasmith.errors import AttachError
from lorasmith.methods.lokr import factorization
from lorasmith.methods.lycoris import LycorisSite
from tiny import llama, logits, shake

CONFIGS = {"loha": LoHaConfig, "lokr": LoKrConfig}


@pytest.fixture(params=CONFIGS)
def config_class(request):
    return CONFIGS[request.param]


def site_on(layer: nn.Module, config) -> LycorisSite:
    config.target_modules = ["0"]
    model = nn.Sequential(layer)
    book = attach(model, config)
    shake(model)
    [(_, site)] = book.sites("default")
    return site


@pytest.mark.parametrize(("size", "factor", "wanted"), [(256, -1, (16, 16)), (127, -1, (1, 127)), (128, 4, (4, 32))])
def test_sizes_are_split_as_in_pefts_examples(size, factor, wanted):
    assert factorization(size, factor) == wanted


def test_sizes_are_split_as_in_peft_for_every_size_and_factor():
    theirs = pytest.importorskip("peft.tuners.lokr.layer").factorization
    for size in range(1, 130):
        for factor in (-1, 1, 2, 3, 5, 8, 20, 200):
            assert factorization(size, factor) == theirs(size, factor)


# multiplications a token beside those of the dense 2048 x 2048 matrix; see the heads of loha.py and lokr.py
@pytest.mark.parametrize(
    ("config", "share"),
    [
        (LoHaConfig(r=8), 2 * 64 / 2048),
        (LoKrConfig(r=64), (32 * 64 * 64 + 32 * 32 * 64) / 2048**2),
        (LoKrConfig(r=8), (2 * 32 * 64 * 8 + 32 * 32 * 8) / 2048**2),
    ],
)
def test_the_forward_costs_what_the_small_products_cost(config, share):
    with torch.device("meta"):
        site = site_on(nn.Linear(2048, 2048), config)
        x = torch.empty(4096, 2048)
        with FlopCounterMode(display=False) as counter:
            site.update(x)
    assert counter.get_total_flops() == pytest.approx(share * 2 * 4096 * 2048**2, rel=0.01)


@pytest.mark.parametrize("layer", [nn.Linear(12, 8), nn.Conv1d(12, 8, 3), nn.Conv2d(12, 8, (3, 1))])
@pytest.mark.parametrize("rank", [1, 8])
def test_the_small_products_give_what_the_dense_change_gives(config_class, layer, rank):
    site = site_on(layer, config_class(r=rank))
    shape = (5, 12) if isinstance(layer, nn.Linear) else (2, 12, 6, 5)[: layer.weight.dim()]
    x = torch.randn(shape)
    layer.weight.data.copy_(site.change().detach().reshape(layer.weight.shape))
    layer.bias.data.zero_()
    # two orders of the same f32 sums
    assert_close(site.update(x), layer(x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_of_every_geometry_merge_to_the_same_output(config_class, padding_mode, padding, groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, (3, 2), padding=padding, dilation=2, groups=groups, padding_mode=padding_mode)
    model = nn.Sequential(layer)
    attach(model, config_class(target_modules=["0"], r=2))
    shake(model)
    x = torch.randn(2, 8, 9, 7)
    adapted = model(x).detach()
    # one more rounding of the weight in f32
    assert_close(merge_and_unload(model)(x), adapted, atol=1e-5, rtol=0)


def test_a_loha_of_rank_3_changes_a_weight_by_a_matrix_of_rank_9():
    site = site_on(nn.Linear(32, 32), LoHaConfig(r=3, init_weights=False))
    assert torch.linalg.matrix_rank(site.change()) == 9


# LoHa always scales
@pytest.mark.parametrize(
    ("name", "scaled"),
    [("LoHaConfig", {}), ("LoKrConfig", {}), ("LoKrConfig", {"rank_dropout_scale": True})],
)
def test_dropouts_draw_and_act_as_in_peft(name, scaled):
    peft = pytest.importorskip("peft")
    fields = {"r": 2, "target_modules": "all-linear", "rank_dropout": 0.4, "module_dropout": 0.3, "init_weights": False}
    outputs = []
    for build in (peft, lorasmith):
        torch.manual_seed(1)
        model = build.get_peft_model(llama(), getattr(build, name)(**fields, **scaled))
        shake(model).train()
        # the tensors are drawn in another order here
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
        torch.manual_seed(5)
        outputs.append(logits(model))
        torch.manual_seed(6)
        assert not torch.equal(logits(model), outputs[-1])
    assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)


def test_evaluation_drops_nothing(config_class):
    model = llama()
    attach(model, config_class(target_modules="all-linear", rank_dropout=0.5, module_dropout=0.5))
    shake(model).eval()
    assert torch.equal(logits(model), logits(model))


@pytest.mark.parametrize("fields", [{"r": 0}, {"rank_dropout": 1.0}, {"module_dropout": -0.1}])
def test_values_out_of_range_are_refused(config_class, fields):
    with pytest.raises(AttachError, match=next(iter(fields))):
        config_class(**fields)


def test_a_factor_of_zero_and_an_unknown_start_are_refused():
    with pytest.raises(AttachError, match="decompose_factor=0"):
        LoKrConfig(decompose_factor=0)
    with pytest.raises(AttachError, match="init_weights='zero'"):
        LoKrConfig(init_weights="zero")


def test_a_conv1d_with_an_effective_second_factor_works():
    model = nn.Sequential(nn.Conv1d(16, 8, 3))
    attach(model, LoKrConfig(target_modules=["0"], r=1, use_effective_conv2d=True))
    shake(model)
    x = torch.randn(2, 16, 9)
    adapted = model(x).detach()
    assert (adapted - model[0].base_layer(x)).abs().max() > 1e-3
    # one more rounding of the weight in f32
    assert_close(merge_and_unload(model)(x), adapted, atol=1e-5, rtol=0)


def test_the_thin_factors_of_a_loha_are_made_again_when_a_tensor_changes():
    site = site_on(nn.Linear(32, 32), LoHaConfig(r=2))
    with torch.no_grad():
        before, again = site.low_rank(None), site.low_rank(None)
        assert before.a is again.a
        site.hada_w1_a.weight.mul_(2)
        assert_close(site.low_rank(None).b, 2 * before.b)


def test_embeddings_and_conv3d_are_refused(config_class):
    with pytest.raises(AttachError, match="exclude this module"):
        attach(llama(), config_class(target_modules=["embed_tokens"]))
    with pytest.raises(AttachError, match="exclude this module"):
        attach(nn.Sequential(nn.Conv3d(2, 2, 1)), config_class(target_modules=["0"]))
