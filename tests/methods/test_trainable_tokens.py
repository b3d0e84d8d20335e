"""Trainable tokens, alone and beside LoRA, and what shares a weight with them."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from lorasmith.attach import adapters_of, attach, load_adapter, merge_and_unload, merge_in_place, save_adapter, unmerge
from lorasmith.errors import AttachError
from lorasmith.methods.full import FullConfig
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.trainable_tokens import TrainableTokensConfig
from tiny import IDS, llama, logits, shake

TOKENS = [42, 5, 60]


def tied(seed=0):
    return llama(seed, tie_word_embeddings=True)


def adapted(build=tied, **fields):
    model = build()
    attach(model, TrainableTokensConfig(token_indices=TOKENS, **fields))
    return model


@pytest.mark.parametrize("build", [llama, tied])
def test_the_rows_get_the_gradients_that_they_would_have_in_the_whole_matrix(build):
    ours, whole = adapted(build), build()
    attach(whole, FullConfig())
    for model in (ours, whole):
        model(input_ids=IDS, labels=IDS).loss.backward()
    (rows,) = adapters_of(ours).parameters("default")
    assert_close(rows.grad, whole.get_input_embeddings().weight.grad[TOKENS], atol=1e-6, rtol=1e-5)


def test_it_starts_as_the_base_and_changes_only_texts_with_these_tokens():
    model = adapted(llama)
    assert torch.equal(logits(model), logits(llama()))
    others = torch.tensor([[1, 2, 3]])
    before = logits(model, others)
    shake(model)
    assert torch.equal(logits(model, others), before)
    assert not torch.equal(logits(model), logits(llama()))


def test_a_tied_head_scores_with_the_same_rows():
    model = shake(adapted())
    states = model.model(IDS).last_hidden_state
    (rows,) = adapters_of(model).parameters("default")
    assert_close(logits(model)[..., TOKENS], (states @ rows.T).detach(), atol=1e-5, rtol=0)


def test_rows_of_a_head_with_a_bias_keep_it():
    model = llama()
    model.lm_head = torch.nn.Linear(32, 64)
    before = logits(model)
    attach(model, TrainableTokensConfig(token_indices=TOKENS, target_modules=["lm_head"]))
    assert_close(logits(model), before, atol=1e-5, rtol=0)


def test_merged_for_good_embedding_and_head_stay_one_weight():
    model = shake(adapted())
    before = logits(model)
    merged = merge_and_unload(model)
    assert_close(logits(merged), before, atol=1e-5, rtol=0)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings


def test_merged_in_place_and_back_every_bit_is_as_before():
    model = shake(adapted())
    before, weight = logits(model), model.lm_head.base_layer.weight.clone()
    merge_in_place(model)
    assert_close(logits(model), before, atol=1e-5, rtol=0)
    unmerge(model)
    assert torch.equal(model.lm_head.base_layer.weight, weight)
    assert torch.equal(logits(model), before)


def test_the_file_holds_the_rows_alone_and_fits_a_base_whose_new_rows_were_drawn_anew(tmp_path):
    model = shake(adapted())
    save_adapter(model, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert {tuple(value.shape) for value in state.values()} == {(3, 32)}
    other = tied()
    with torch.no_grad():
        other.model.embed_tokens.weight[TOKENS] = torch.randn(3, 32)
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


def test_rows_beside_lora_train_and_come_back(tmp_path):
    model = tied()
    book = attach(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=TOKENS))
    assert sum(p.numel() for p in book.parameters("default")) == 2 * 8 * (32 + 32) + 3 * 32
    save_adapter(shake(model), tmp_path)
    other = tied()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    merged = merge_and_unload(model)
    assert_close(logits(merged), logits(other), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: TrainableTokensConfig(token_indices=[3, 3]), "each named once"),
        (lambda: TrainableTokensConfig(token_indices=[-1]), "at least 0"),
        (lambda: TrainableTokensConfig(), "no token is named to train"),
        (lambda: TrainableTokensConfig(token_indices=[64]), "has 64 rows, token 64 is not among them"),
        (
            lambda: LoraConfig(target_modules=["embed_tokens"], trainable_token_indices=[3]),
            "would be adapted twice by 'default'",
        ),
        (
            lambda: LoraConfig(trainable_token_indices={"embed_tokens": [1], "lm_head": [2]}),
            "cannot train apart",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(config, message):
    model = tied()
    before = {name for name, _ in model.named_modules()}
    with pytest.raises(AttachError, match=message):
        attach(model, config())
    assert {name for name, _ in model.named_modules()} == before


def test_two_adapters_with_other_tokens_act_together():
    model = adapted(llama)
    attach(model, TrainableTokensConfig(token_indices=[9]), "second")
    shake(model, 0.3)
    book = adapters_of(model)
    book.activate(["default", "second"])
    shake(model, 0.1)
    both = logits(model)
    assert_close(logits(merge_and_unload(model)), both, atol=1e-5, rtol=0)
