"""Trying a model leaves it, and the random generators, as they were."""

import pytest
import torch
from torch import nn

from lorasmith.models.trial import trial


def test_modes_random_state_and_gradients_come_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), trial(model, torch.device("cpu")):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_bf16_weights_meet_f32_ones():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    with trial(model, torch.device("cpu")):
        assert model(torch.ones(1, 2)).dtype == torch.bfloat16
