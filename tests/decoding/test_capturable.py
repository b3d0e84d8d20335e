"""A decode step asks for no number and touches no tensor of the CPU, so that a GPU need not wait for it."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import StaticCache

from lorasmith.attach import attach
from lorasmith.methods.lora import LoraConfig
from lorasmith.quantized import Scheme
from tiny import llama, quantized

# the stand-in for a GPU: a device without values
ELSEWHERE = "meta"


class Places(TorchDispatchMode):
    """The operations that leave the device; one that asks for a value raises there."""

    def __init__(self):
        super().__init__()
        self.seen, self.leaving = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
        self.seen += 1
        self.leaving += [str(func) for tensor in tensors if tensor.device.type != ELSEWHERE]
        return output


def given(model, cache, count, **how):
    """What generate gives a forward for the last of count tokens, or all of them."""
    ids, positions = (torch.zeros(1, count, dtype=torch.long, device=ELSEWHERE) for _ in range(2))
    settings = {"past_key_values": cache, "use_cache": True, "position_ids": positions, "attention_mask": None}
    return model.prepare_inputs_for_generation(ids, **settings, **how)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("format_name", [None, "nf4", "int8"])
def test_a_step_stays_on_its_device(format_name, dora, monkeypatch):
    model = llama(hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    if format_name is not None:
        quantized(model, Scheme(format_name))
    attach(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=dora))
    model.eval().to(ELSEWHERE)
    # there is no autocast of this device to ask for
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)
    cache = StaticCache(model.config, max_cache_len=16)
    with torch.no_grad():
        model(**given(model, cache, 5, is_first_iteration=True))
        step = given(model, cache, 6, next_sequence_length=1)
        with Places() as places:
            model(**step)
    assert places.seen > 50
    assert places.leaving == []


def test_a_step_that_left_its_device_would_show():
    with torch.no_grad(), Places() as places:
        torch.zeros(3, device=ELSEWHERE).index_fill_(0, torch.tensor([1], device=ELSEWHERE), 2.0)
        torch.zeros(3, device=ELSEWHERE).copy_(torch.ones(3))
    assert any("copy_" in name for name in places.leaving)
    with pytest.raises(RuntimeError, match="meta tensors"):
        torch.zeros(1, device=ELSEWHERE).item()
