import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import attach
from lorasmith.errors import AttachError
from lorasmith.methods.lora import LoraConfig, LoraSite
from lorasmith.quantized import count_parameters


def trained(module: nn.Module, **fields: object) -> int:
    model = nn.Sequential(module)
    attach(model, LoraConfig(target_modules=["0"], **fields))
    return count_parameters(model).trainable


def test_a_512_by_64_layer_at_rank_8_trains_4608_parameters():
    layer = nn.Linear(64, 512, bias=False)
    assert trained(layer, r=8) == 4608
    assert round(1 - 4608 / (512 * 64), 2) == 0.86


def test_a_3_by_3_layer_at_rank_1_trains_6_parameters():
    assert trained(nn.Linear(3, 3, bias=False), r=1) == 6


def site_of(path: str, **fields: object) -> LoraSite:
    layers = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "v_proj": nn.Linear(8, 8)})
    model = nn.ModuleDict({"layer": layers})
    book = attach(model, LoraConfig(target_modules=["q_proj", "v_proj"], **fields))
    return dict(book.sites("default"))[path]


@pytest.mark.parametrize(("stable", "scaling"), [(False, 12 / 4), (True, 12 / math.sqrt(4))])
def test_the_scaling_is_alpha_over_rank_or_its_root(stable, scaling):
    assert site_of("layer.q_proj", r=4, lora_alpha=12, use_rslora=stable).scaling == scaling


def test_patterns_give_a_module_its_own_rank_and_alpha():
    fields = {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layer.v_proj": 20}}
    q, v = site_of("layer.q_proj", **fields), site_of("layer.v_proj", **fields)
    assert (q.rank, q.scaling) == (2, 4.0)
    assert (v.rank, v.scaling) == (4, 5.0)


def test_b_starts_at_zero_and_a_at_kaiming():
    site = site_of("layer.q_proj", r=4)
    assert not site.lora_B.weight.any()
    # Kaiming uniform with a = sqrt(5): bounded by 1 / sqrt(in_features)
    assert 0 < site.lora_A.weight.abs().max() <= 1 / math.sqrt(8)


def test_dropout_acts_before_a_and_only_in_training():
    model = nn.Sequential(nn.Linear(64, 64))
    attach(model, LoraConfig(target_modules=["0"], lora_dropout=0.5))
    nn.init.normal_(model[0].lora_B["default"].weight)
    x = torch.randn(4, 64)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=2),
        nn.Conv3d(4, 6, 2, bias=False),
    ],
    ids=lambda conv: type(conv).__name__,
)
def test_a_convolutions_delta_is_its_adapter(conv):
    model = nn.Sequential(conv)
    book = attach(model, LoraConfig(target_modules=["0"], r=2, lora_alpha=3))
    site = book.sites("default")[0][1]
    nn.init.normal_(site.lora_B.weight)
    x = torch.randn(2, 4, *[9] * (conv.weight.dim() - 2))
    adapted = model(x)
    conv.weight.data += site.delta(conv.weight.data)
    # one extra rounding of the weight in f32
    assert_close(conv(x), adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "rank must be at least 1"),
        ({"lora_dropout": 1.5}, "lora_dropout"),
        ({"bias": "some"}, "lora_only"),
        ({"init_lora_weights": "corda"}, "not built yet; choose one of: .*'gaussian'"),
        ({"use_dora": True, "lora_bias": True}, "lengths say nothing of a bias"),
        ({"task_type": "POETRY"}, "CAUSAL_LM"),
    ],
)
def test_impossible_fields_are_refused_with_the_choices(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)


def test_a_rank_that_a_grouped_convolution_cannot_have_is_refused():
    model = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2))
    with pytest.raises(AttachError, match="groups"):
        attach(model, LoraConfig(target_modules=["0"], r=3))
