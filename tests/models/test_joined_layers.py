"""Gate and up, and q, k and v, in one step each: the same gradients, and every call stays."""

import copy

import pytest
import torch
from tests.tiny import IDS, llama, quantized, shake
from torch.testing import assert_close

from lorasmith.attach import attach
from lorasmith.methods.lora import LoraConfig
from lorasmith.models import joined_layers
from lorasmith.models.activation_checkpointing import checkpoint_activations_
from lorasmith.models.fused_block import fuse_blocks_, split_blocks_
from lorasmith.ops import native
from lorasmith.ops.adapted_linear import group
from lorasmith.ops.library import NATIVE_KERNELS

pytestmark = pytest.mark.skipif(native.extension() is None, reason="fused only where there is a kernel")


@pytest.fixture(autouse=True)
def joining(monkeypatch):
    """As if the CPU were a device on which it pays, with a kernel for rotary embeddings."""
    monkeypatch.setattr(joined_layers, "DEVICES", {"cpu"})
    monkeypatch.setitem(NATIVE_KERNELS, "rotary", {"cpu"})


@pytest.fixture
def taken(monkeypatch):
    """How many layers each joined step had."""
    counts = []
    apply = group._AdaptedLinears.apply
    monkeypatch.setattr(
        group._AdaptedLinears,
        "apply",
        lambda x, products, *rest: counts.append(len(products)) or apply(x, products, *rest),
    )
    return counts


def adapted(*, nf4=True, targets="all-linear", **fields):
    model = llama()
    model = quantized(model) if nf4 else model
    attach(model, LoraConfig(r=2, target_modules=targets, **fields))
    return shake(model)


def step(model):
    """Logits and all gradients."""
    model.zero_grad()
    out = model(input_ids=IDS).logits
    out.float().square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def layers_of(model):
    return len(model.model.layers)


@pytest.mark.parametrize("nf4", [True, False])
@pytest.mark.parametrize("recomputed", [True, False])
def test_a_step_is_that_of_the_model_itself(nf4, recomputed, taken):
    model = adapted(nf4=nf4)
    if recomputed:
        checkpoint_activations_(model)
        model.train()
    fuse_blocks_(model)
    joined, grads = step(model)
    assert taken == [3, 2] * layers_of(model) * (2 if recomputed else 1)
    split_blocks_(model)
    own, own_grads = step(model)
    # f32 sums in another order, through all layers
    assert_close(joined, own, atol=2e-5, rtol=1e-4)
    assert grads.keys() == own_grads.keys()
    for name, grad in grads.items():
        assert_close(grad, own_grads[name], atol=1e-4 * float(own_grads[name].abs().max()), rtol=1e-4)


@pytest.mark.parametrize(
    "fields, steps",
    [
        ({"targets": ["q_proj", "v_proj", "gate_proj", "up_proj"]}, [2]),
        ({"targets": ["q_proj", "k_proj", "v_proj", "up_proj"]}, [3]),
        ({"lora_dropout": 0.1}, []),
        ({"rank_pattern": {"up_proj": 4}}, [3]),
    ],
)
def test_layers_that_differ_in_kind_stay_apart(fields, steps, taken):
    model = adapted(**fields).train()
    fuse_blocks_(model)
    step(model)
    assert taken == steps * layers_of(model)


def test_hooks_of_a_layer_run_and_may_change_what_it_reads_and_gives(taken):
    model = adapted()
    fuse_blocks_(model)
    own = copy.deepcopy(model)
    split_blocks_(own)
    seen = []
    for each in (model, own):
        attention, feed_forward = each.model.layers[1].self_attn, each.model.layers[1].mlp
        attention.k_proj.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        feed_forward.up_proj.register_forward_hook(lambda module, args, y: 3 * y)
        attention.q_proj.register_full_backward_hook(lambda module, *_: seen.append(module))
    joined, grads = step(model)
    expected, own_grads = step(own)
    assert seen == [each.model.layers[1].self_attn.q_proj for each in (model, own)]
    assert_close(joined, expected, atol=2e-5, rtol=1e-4)
    for name, grad in grads.items():
        assert_close(grad, own_grads[name], atol=1e-4 * float(own_grads[name].abs().max()), rtol=1e-4)


def test_nothing_lies_ready_after_a_forward_that_failed():
    model = adapted()
    fuse_blocks_(model)
    feed_forward = model.model.layers[0].mlp

    def fail(*_):
        raise ValueError("stop")

    handle = feed_forward.gate_proj.register_forward_hook(fail)
    with pytest.raises(ValueError, match="stop"):
        model(input_ids=IDS)
    handle.remove()
    assert all(layer._ready is None for layer in (feed_forward.gate_proj, feed_forward.up_proj))
    step(model)


def test_without_gradients_layers_are_called_one_by_one(taken):
    model = adapted()
    fuse_blocks_(model)
    with torch.no_grad():
        model(input_ids=IDS)
    assert taken == []


def test_a_cpu_joins_nothing(monkeypatch, taken):
    monkeypatch.undo()
    assert {"cuda"} == joined_layers.DEVICES
