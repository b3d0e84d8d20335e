import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from lorasmith.attach import adapter_state, adapters_of, attach, load_adapter, load_adapter_state, save_adapter
from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods.p_tuning import PromptEncoderConfig
from lorasmith.training import checkpoint
from tiny import llama, logits, shake

LSTM = {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 12}


def encoded(**fields):
    model = llama()
    attach(model, PromptEncoderConfig(num_virtual_tokens=4, task_type="CAUSAL_LM", **fields))
    return shake(model)


def prompt_of(model):
    return adapters_of(model).prompted.prompt


def test_an_mlp_makes_the_tokens_as_the_formula_says():
    prompt = prompt_of(encoded(encoder_hidden_size=12))
    first, _, second, _, third = prompt.mlp_head
    h = torch.relu(prompt.embedding.weight @ first.weight.T + first.bias)
    h = torch.relu(h @ second.weight.T + second.bias)
    # another order of the same f32 sums
    assert_close(prompt.embeddings(), h @ third.weight.T + third.bias, atol=1e-6, rtol=0)


def test_an_lstm_sees_the_rows_from_both_ends():
    prompt = prompt_of(encoded(**LSTM))
    before = prompt.embeddings()
    with torch.no_grad():
        prompt.embedding.weight[2] += 1
    changed = (prompt.embeddings() - before).abs().amax(1)
    assert (changed > 1e-6).all()


def test_a_file_holds_the_tokens_alone_and_without_dropout():
    model = encoded(**LSTM, encoder_num_layers=2, encoder_dropout=0.5).train()
    state = adapter_state(model)
    assert list(state) == ["prompt_embeddings"]
    assert torch.equal(state["prompt_embeddings"], adapter_state(model.eval())["prompt_embeddings"])
    assert model.train().training and prompt_of(model).training


@pytest.mark.parametrize("fields", [{}, LSTM], ids=["MLP", "LSTM"])
def test_training_cannot_go_on_from_a_file_which_lacks_the_encoder(fields, tmp_path):
    save_adapter(encoded(**fields), tmp_path)
    with pytest.raises(AdapterError, match="without the encoder of its virtual tokens"):
        load_adapter(llama(), tmp_path, trainable=True)


def test_a_checkpoint_of_a_run_holds_the_encoder(tmp_path):
    model = encoded(**LSTM)
    tensors = checkpoint.trainable_parameters(model)
    assert {name.split(".")[2] for name in tensors} == {"embedding", "lstm_head", "mlp_head"}


def test_tokens_that_were_loaded_take_the_place_of_the_encoder():
    model = encoded()
    tokens = torch.randn(4, 32)
    load_adapter_state(model, {"prompt_embeddings": tokens})
    assert torch.equal(prompt_of(model).embeddings(), tokens)
    assert torch.isfinite(logits(model)).all()


def test_an_unknown_encoder_is_refused():
    with pytest.raises(AttachError, match="'GRU' is not one of MLP, LSTM"):
        PromptEncoderConfig(num_virtual_tokens=4, encoder_reparameterization_type="GRU")


def test_a_file_that_does_not_fit_leaves_the_encoder_that_it_was_to_replace(tmp_path):
    save_adapter(encoded(), tmp_path)
    model = encoded(**LSTM)
    before, tensors = logits(model), checkpoint.trainable_parameters(model)
    (tmp_path / "adapter_model.safetensors").unlink()
    save_file({"prompt_embeddings": torch.zeros(4, 8)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="prompt_embeddings has shape"):
        load_adapter(model, tmp_path)
    assert torch.equal(logits(model), before)
    again = checkpoint.trainable_parameters(model)
    assert again.keys() == tensors.keys()
    assert all(again[name] is tensors[name] for name in tensors)
