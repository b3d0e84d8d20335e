"""Generation with a cache on a quantized base with an active LoRA."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from lorasmith import LoraConfig, get_peft_model
from lorasmith.ops.native import extension

NEW = 8


class Calls(TorchDispatchMode):
    """The names of lorasmith's ops, in the order of their calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lorasmith":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


def speaking():
    # sizes that the kernels of a few rows take: multiples of 32
    base = tiny.quantized(tiny.llama(intermediate_size=64))
    return tiny.shake(get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))).eval()


def generated(model, cached):
    ids = tiny.IDS[:1]
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "use_cache": cached}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)


@pytest.mark.skipif(extension() is None, reason="the reference dequantizes for any number of rows")
def test_a_step_of_one_row_dequantizes_no_matrix():
    model = speaking()
    with torch.no_grad():
        cache = model(input_ids=tiny.IDS[:1], use_cache=True).past_key_values
        with Calls() as calls:
            model(input_ids=tiny.IDS[:1, :1], past_key_values=cache, use_cache=True)
    layers = 2 * 7
    assert calls.names == ["adapted_blockwise_linear"] * layers


def test_greedy_tokens_are_the_same_with_and_without_a_cache():
    model = speaking()
    assert torch.equal(generated(model, True), generated(model, False))
