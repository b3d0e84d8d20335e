"""Layers that are alike share a graph, which no batch breaks, and the model is its own again afterwards."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

from lorasmith.attach import attach
from lorasmith.errors import ModelError
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.activation_checkpointing import recomputed
from lorasmith.models.compiled_layers import compiled_layers, pays, repeated_layers
from lorasmith.models.packed_attention import enable_packing, segment_mask
from tiny import IDS, bert, llama, shake, t5

# torch.compile instantiates the autograd.Functions that it traces, and looks at the gradients of a layer's inputs
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

# the compiler orders sums of f32 its own way
CLOSE = {"atol": 2e-6, "rtol": 2e-5}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


def adapted(**changes):
    model = llama(num_hidden_layers=3, **changes).train()
    attach(model, LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.2))
    return shake(model)


def trained(model, **inputs):
    model.zero_grad()
    torch.manual_seed(3)
    logits = model(**inputs, use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def assert_same(found, expected):
    assert_close(found[0], expected[0], **CLOSE)
    assert len(found[1]) == len(expected[1]) == 6
    for gradient, wanted in zip(*(each[1] for each in (found, expected)), strict=True):
        assert_close(gradient, wanted, **CLOSE)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_two_graphs_serve_every_layer_and_step(checkpointing):
    model = adapted()
    expected = trained(model, input_ids=IDS)
    with compiled_layers(model, "aot_eager") as layers:
        assert len(layers) == 3
        if checkpointing:
            with recomputed(model):
                found = trained(model, input_ids=IDS)
        else:
            found = trained(model, input_ids=IDS)
        assert_same(found, expected)
        # the first layer's input needs no gradient
        assert counters["stats"]["unique_graphs"] == 2
        with torch.compiler.set_stance("fail_on_recompile"):
            if not checkpointing:
                trained(model, input_ids=IDS)
    assert not counters["graph_break"]


def packed(bounds):
    lengths = [end - start for start, end in pairwise(bounds)]
    return {
        "input_ids": torch.arange(bounds[-1])[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "attention_mask": segment_mask(torch.tensor(bounds)),
    }


def test_packed_rows_need_no_graph_of_their_own_for_other_bounds():
    model = adapted()
    assert enable_packing(model) is None
    rows = [packed(bounds) for bounds in ([0, 3, 7, 12], [0, 6, 8, 12], [0, 4, 8, 12])]
    expected = [trained(model, **row) for row in rows]
    with compiled_layers(model, "aot_eager"):
        assert_same(trained(model, **rows[0]), expected[0])
        with torch.compiler.set_stance("fail_on_recompile"):
            for row, wanted in zip(rows[1:], expected[1:], strict=True):
                assert_same(trained(model, **row), wanted)
    assert not counters["graph_break"]


def test_the_layers_are_those_that_repeat():
    assert [len(repeated_layers(model)) for model in (llama(), bert(), t5())] == [2, 2, 6]


def test_what_the_compiler_cannot_see_is_one_error_and_leaves_the_model_as_it_was():
    model = adapted()
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: print(float(output.sum())))
    refused = pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be compiled .*training.compile: false")
    with refused, compiled_layers(model, "aot_eager"):
        trained(model, input_ids=IDS)
    assert all(layer._compiled_call_impl is None for layer in repeated_layers(model))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ModelError, match=r"training.compile: false"), compiled_layers(nn.Linear(2, 2)):
        raise AssertionError("not refused")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_is_off_until_it_is_measured(device):
    assert [pays(wanted, torch.device(device)) for wanted in ("auto", False, True)] == [False, False, True]
