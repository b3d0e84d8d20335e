import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lorasmith import VeraConfig
from lorasmith.attach import WEIGHTS_FILE, attach, load_adapter, save_adapter
from lorasmith.errors import AttachError
from tiny import IDS, llama, logits, shake

EVERYWHERE = {"target_modules": "all-linear", "r": 6}


def test_all_layers_share_one_a_and_one_b_as_large_as_the_widest(tmp_path):
    model = llama()
    book = attach(model, VeraConfig(**EVERYWHERE))
    sites = [site for _, site in book.sites("default")]
    assert len({id(site.vera_A) for site in sites}) == len({id(site.vera_B) for site in sites}) == 1
    save_adapter(model, tmp_path)
    state = load_file(tmp_path / WEIGHTS_FILE)
    shared = {key: tuple(value.shape) for key, value in state.items() if "lambda" not in key}
    assert shared == {"base_model.vera_A": (6, 48), "base_model.vera_B": (48, 6)}


@pytest.mark.parametrize("key", [0, 17])
def test_a_and_b_are_bit_for_bit_what_peft_draws_from_the_key(key):
    peft = pytest.importorskip("peft")
    fields = EVERYWHERE | {"projection_prng_key": key}
    theirs = peft.get_peft_model(llama(), peft.VeraConfig(**fields)).base_model
    site = attach(llama(), VeraConfig(**fields)).sites("default")[0][1]
    assert torch.equal(site.vera_A.weight, theirs.vera_A["default"])
    assert torch.equal(site.vera_B.weight, theirs.vera_B["default"])


def test_a_file_without_projections_draws_them_again(tmp_path):
    model = llama()
    attach(model, VeraConfig(**EVERYWHERE, save_projection=False, projection_prng_key=5))
    shake(model)
    save_adapter(model, tmp_path)
    assert all("lambda" in key for key in load_file(tmp_path / WEIGHTS_FILE))
    other = llama()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_step_of_training_has_the_values_and_gradients_of_the_plain_formula(dropout):
    model = shake_of(VeraConfig(**EVERYWHERE, vera_dropout=dropout)).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    results = []
    for low_rank in (True, False):
        for _, module in model.adapters_book.adapted():
            if not low_rank:
                # what every site does that states no low-rank update
                module.sites["default"].low_rank = lambda weight: None
        torch.manual_seed(3)
        out = model(input_ids=IDS).logits
        results.append([out, *torch.autograd.grad(out.square().sum(), parameters)])
    # dropout draws its masks in another way in the two; without it they are one formula
    if not dropout:
        for one, other in zip(*results, strict=True):
            assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert all(gradient.abs().sum() > 0 for gradient in results[0][1:] if gradient.numel() > 8)


def shake_of(config: VeraConfig) -> nn.Module:
    model = llama()
    attach(model, config)
    return shake(model)


def test_training_keeps_no_input_of_a_layer_for_the_backward_pass():
    model = nn.Sequential(nn.Linear(24, 16))
    attach(model, VeraConfig(target_modules=["0"], r=4))
    kept = []
    x = torch.randn(10, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model(x)
    assert kept
    assert not any(tensor.data_ptr() == x.data_ptr() for tensor in kept)


@pytest.mark.parametrize("fields", [{"r": 0}, {"vera_dropout": 1.0}, {"bias": "lora_only"}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(AttachError, match=next(iter(fields))):
        VeraConfig(**fields)


def test_embeddings_are_refused():
    with pytest.raises(AttachError, match="exclude this module"):
        attach(llama(), VeraConfig(target_modules=["embed_tokens"]))
