"""Heads, routers and tied weights stay dense, with the reason; everything else that is linear is quantized."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    Qwen2MoeConfig,
)

from lorasmith.errors import ModelError
from lorasmith.models.placement import dense_reasons, linears, matches, replace_linears_, require_skips
from lorasmith.quantized import QuantizedLinear, Scheme

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


def test_the_output_head_stays_dense():
    assert dense_reasons(AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))) == {"lm_head": "output head"}


def test_the_heads_of_classifiers_stay_dense():
    small = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
    bert = AutoModelForSequenceClassification.from_config(BertConfig(**small))
    assert dense_reasons(bert) == {"classifier": "task head"}
    llama = AutoModelForSequenceClassification.from_config(LlamaConfig(**SMALL, pad_token_id=0))
    assert dense_reasons(llama) == {"score": "task head"}


def test_routers_of_experts_stay_dense():
    config = Qwen2MoeConfig(
        **SMALL, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=2, num_experts_per_tok=1
    )
    model = AutoModelForCausalLM.from_config(config)
    reasons = dense_reasons(model)
    assert reasons["model.layers.0.mlp.shared_expert_gate"] == "router"
    assert "model.layers.0.mlp.shared_expert.gate_proj" not in reasons


def test_what_is_skipped_is_named_so():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    reasons = dense_reasons(model, ["down_proj"])
    assert reasons["model.layers.0.mlp.down_proj"] == "skipped on request"
    assert reasons["lm_head"] == "output head"


def test_skipping_what_there_is_not_is_refused_but_for_the_usual_heads():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    require_skips(model, ["down_proj", "model.layers.0", r"model\.layers\.0\.mlp\..*", "score", "embed_tokens"])
    for pattern in ("down", "layers.0.mlp.down", r"layers\.0\..*"):
        with pytest.raises(ModelError, match="no module of LlamaForCausalLM is meant by"):
            require_skips(model, ["o_proj", pattern])


def test_a_pattern_is_a_name_its_end_a_parent_or_a_regular_expression():
    name = "model.layers.1.mlp.gate_proj"
    for pattern in (name, "gate_proj", "mlp.gate_proj", "model", "model.layers.1", r".*\.gate_.*"):
        assert matches(name, [pattern]), pattern
    for pattern in ("gate", "proj", "model.layers.11", "layers", "mod", "model.layers.1.mlp.gate"):
        assert not matches(name, [pattern]), pattern


def test_subclasses_of_linear_that_do_more_are_left_alone():
    attention = nn.MultiheadAttention(8, 2)
    assert type(attention.out_proj) is not nn.Linear
    assert list(linears(attention)) == []


def test_replaced_layers_are_empty_and_keep_the_source_shape():
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64, bias=False))
    replaced = replace_linears_(model, ["1"], Scheme(), torch.bfloat16, compute_dtype=torch.float32)
    assert replaced == {"0": False}
    assert isinstance(model[0], QuantizedLinear)
    assert model[0].shape == (32, 64)
    assert model[0].weight.is_meta
    assert model[0].bias.dtype == torch.bfloat16
    assert type(model[1]) is nn.Linear
