"""Recomputing changes memory and nothing else."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from lorasmith.errors import ModelError
from lorasmith.models.activation_checkpointing import checkpoint_activations_, recomputed


def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
        attention_dropout=0.2,
    )
    model = AutoModelForCausalLM.from_config(config).train()
    for name, parameter in model.named_parameters():
        # the two lower layers and the embeddings are frozen
        parameter.requires_grad_("layers.2." in name)
    return model


def gradients(model):
    torch.manual_seed(5)
    tokens = torch.arange(12)[None]
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_are_bit_equal_dropout_included():
    kept, recomputed = build(), build()
    checkpoint_activations_(recomputed)
    wanted, got = gradients(kept), gradients(recomputed)
    assert wanted.keys() == got.keys()
    assert len(wanted) > 0
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_no_gradient_flows_below_the_lowest_trained_layer():
    model = build()
    checkpoint_activations_(model)
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, arguments, output: seen.append(output.requires_grad))
    gradients(model)
    assert seen[:3] == [False, False, True]


def test_it_can_last_for_a_block_alone():
    model = build()
    with recomputed(model):
        assert model.model.layers[0].gradient_checkpointing
    assert not model.model.layers[0].gradient_checkpointing


def test_a_model_that_cannot_is_refused_with_the_fix():
    with pytest.raises(ModelError, match="gradient_checkpointing: false"):
        checkpoint_activations_(nn.Linear(2, 2))
