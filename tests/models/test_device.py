"""A device is resolved by name, and a stranger or an absent one is refused."""

import pytest
import torch

from lorasmith.errors import DeviceError
from lorasmith.models.device import resolve


def test_auto_takes_the_fastest_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve("auto") == torch.device("cuda")


def test_a_card_can_be_picked_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve("cuda:1") == torch.device("cuda", 1)


def test_an_absent_device_is_refused_with_those_present(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"'cuda' is not on this machine \(it has .*cpu\)"):
        resolve("cuda")


def test_a_misspelt_device_is_refused_with_the_nearest_name():
    with pytest.raises(DeviceError, match="Did you mean 'cuda'"):
        resolve("cuad")
