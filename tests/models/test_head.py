"""A model is split into backbone and head only where the parts give its own logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MiniCPM3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from lorasmith.models.head import next_token_targets, split_head

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 50,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": LlamaConfig(**SMALL),
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "capped": Gemma2Config(**SMALL, final_logit_softcapping=2.0),
    "multiplied": CohereConfig(**SMALL, logit_scale=0.25),
    "divided": GraniteConfig(**SMALL, logits_scaling=8.0),
    "gpt2": GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50),
}


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # logits of order 10, where a cap of 2 shows
        model.get_output_embeddings().weight.mul_(100)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parts_give_the_models_own_loss_and_gradient(name):
    model = build(CONFIGS[name]).eval()
    tokens = torch.randint(0, 50, (2, 9))
    own = model(input_ids=tokens, labels=tokens).loss
    parameter = next(p for n, p in model.named_parameters() if "layers.0" in n or "h.0" in n)
    (wanted,) = torch.autograd.grad(own, parameter)
    head = split_head(model)
    assert head is not None
    hidden = head.backbone(input_ids=tokens).last_hidden_state
    nll, count = head.nll(hidden, next_token_targets(tokens, None))
    assert count == 16
    # f32 sums in another order
    assert_close(nll / count, own, rtol=1e-5, atol=0)
    assert_close(torch.autograd.grad(nll / count, parameter)[0], wanted, rtol=1e-3, atol=1e-6)


def test_a_head_that_is_no_plain_linear_layer_is_called_as_the_module_it_is():
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.extra = nn.Parameter(torch.randn_like(base.weight))

        def forward(self, x):
            return self.base(x) + F.linear(x, self.extra)

    model = build(CONFIGS["plain"])
    model.lm_head = Adapted(model.lm_head)
    tokens = torch.randint(0, 50, (1, 6))
    head = split_head(model)
    assert head is not None
    assert head.weight is None
    own = model(input_ids=tokens, labels=tokens).loss
    nll, count = head.nll(head.backbone(input_ids=tokens).last_hidden_state, next_token_targets(tokens, None))
    assert_close(nll / count, own, rtol=1e-5, atol=0)
    wanted, got = (torch.autograd.grad(loss, model.lm_head.extra)[0] for loss in (own, nll / count))
    assert_close(got, wanted, rtol=1e-3, atol=1e-6)


def hidden_rule(model):
    """A family that changes its logits in a way that no field of the table tells."""
    forward = model.forward

    def changed(*arguments, **keywords):
        output = forward(*arguments, **keywords)
        output.logits = output.logits.clamp(-5, 5)
        return output

    model.forward = changed
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: hidden_rule(build(CONFIGS["plain"])),
        lambda: build(MiniCPM3Config(**(SMALL | {"num_key_value_heads": 2}), dim_model_base=8)),
        lambda: BertForSequenceClassification(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)),
        lambda: T5ForConditionalGeneration(T5Config(d_model=32, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)),
        lambda: nn.Linear(3, 4),
    ],
    ids=["clamped", "unknown-scale", "classifier", "encoder-decoder", "no-transformers"],
)
def test_what_cannot_be_explained_is_not_split_and_the_log_says_so(model, caplog):
    assert split_head(model()) is None
    assert "is not split" in caplog.text


def test_the_trial_leaves_no_trace():
    model = build(CONFIGS["plain"])
    model.model.layers[0].eval()
    random_state = torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    split_head(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert not model.model._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_targets_never_cross_from_one_segment_into_the_next():
    labels = torch.tensor([[10, 11, 12, 20, 21, 30]])
    targets = next_token_targets(labels, torch.tensor([0, 3, 5, 6], dtype=torch.int32))
    assert targets.tolist() == [[11, 12, -100, 21, -100, -100]]
