"""Inputs that wait in host memory change where a step keeps them, and nothing of what it computes.

Streams and pinned memory need a GPU; the order of the copies and what is held when are the same code here.
"""

import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig

from lorasmith.errors import DeviceError
from lorasmith.models.activation_checkpointing import checkpoint_activations_
from lorasmith.models.offloaded_inputs import Copies, OffloadedInputs, SideStream, offloaded_inputs


class Recorded(Copies):
    """Copies, and what was done in order: ("out", number), ("back", number), by the order of going out."""

    def __init__(self):
        self.done, self.numbers, self.sent = [], {}, []

    def out(self, x):
        host, wait = super().out(x)
        number = self.numbers[id(host)] = len(self.numbers)
        self.sent.append((host, weakref.ref(x)))
        self.done.append(("out", number))
        return host, wait

    def back(self, host):
        self.done.append(("back", self.numbers[id(host)]))
        return super().back(host)


def build(layers=4):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
        attention_dropout=0.2,
    )
    return AutoModelForCausalLM.from_config(config).train()


def gradients(model, micro_batches=1):
    torch.manual_seed(5)
    for start in range(micro_batches):
        tokens = torch.arange(start, start + 12)[None]
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_are_bit_equal_dropout_included(micro_batches):
    kept, offloaded, mover = build(), build(), Recorded()
    checkpoint_activations_(kept)
    checkpoint_activations_(offloaded, OffloadedInputs(mover))
    wanted, got = gradients(kept, micro_batches), gradients(offloaded, micro_batches)
    assert len(mover.sent) == 4 * micro_batches
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_inputs_come_back_one_layer_ahead_and_the_last_stays():
    model, mover = build(), Recorded()
    checkpoint_activations_(model, OffloadedInputs(mover))
    gradients(model)
    out = [("out", number) for number in range(4)]
    # the last is still there when the backward begins with it, and asks for the one below
    assert mover.done == [*out, ("back", 2), ("back", 1), ("back", 0)]


def test_a_second_micro_batch_does_not_ask_for_the_first_ones():
    model, mover = build(), Recorded()
    checkpoint_activations_(model, OffloadedInputs(mover))
    gradients(model, 2)
    assert sorted(number for what, number in mover.done if what == "back") == [0, 1, 2, 4, 5, 6]


def test_the_device_holds_one_input_while_the_next_layer_runs():
    inputs, mover, alive = OffloadedInputs(Recorded()), None, []
    mover = inputs.mover

    def layer(x):
        alive.append(sum(sent() is not None for _, sent in mover.sent))
        return x * 2.0

    run = inputs.around(lambda x: checkpoint(layer, x, use_reentrant=False))
    x = torch.ones(3, 4, requires_grad=True)
    start = x
    for _ in range(5):
        x = run(x)
    # the start is a leaf that the test holds; besides it only the input of the layer that runs
    assert alive[1:] == [2, 2, 2, 2]
    x.sum().backward()
    assert torch.equal(start.grad, torch.full((3, 4), 32.0))


def test_host_copies_go_with_the_graph():
    inputs, hosts = OffloadedInputs(Recorded()), []
    run = inputs.around(lambda x: checkpoint(lambda y: y * y, x, use_reentrant=False))
    x = torch.ones(3, 4, requires_grad=True)
    y = run(run(x))
    hosts = [weakref.ref(host) for host, _ in inputs.mover.sent]
    inputs.mover.sent.clear()
    y.sum().backward()
    del y
    assert all(host() is None for host in hosts)


def test_a_graph_may_be_gone_through_twice():
    inputs = OffloadedInputs(Recorded())
    run = inputs.around(lambda x: checkpoint(lambda y: y * y, x, use_reentrant=False))
    x = torch.full((3, 4), 3.0, requires_grad=True)
    y = run(run(x)).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x)[0], first)


def test_what_is_no_activation_is_left_where_it_is():
    inputs = OffloadedInputs(Recorded())
    run = inputs.around(
        lambda *given: checkpoint(lambda y, places, scale: y[places] * scale, *given, use_reentrant=False)
    )
    x = torch.ones(3, 4, requires_grad=True)
    run(x, torch.tensor([0, 2]), torch.tensor(2.0)).sum().backward()
    assert [what for what, _ in inputs.mover.done] == ["out"]


def test_on_a_cpu_offloading_is_refused_by_name():
    with pytest.raises(DeviceError, match="offload_checkpoints=true needs a CUDA GPU; cpu has no other memory"):
        offloaded_inputs(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="side streams and pinned memory need a CUDA GPU")
def test_on_a_gpu_gradients_are_bit_equal_and_less_is_held():
    device, peaks, found = torch.device("cuda"), [], []
    for inputs in (None, OffloadedInputs(SideStream(device))):
        model = build(layers=12).to(device)
        checkpoint_activations_(model, inputs)
        torch.cuda.reset_peak_memory_stats()
        found.append(gradients(model))
        peaks.append(torch.cuda.max_memory_allocated())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert peaks[1] < peaks[0]
