import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lorasmith
from lorasmith.attach import adapter_state, adapters_of, attach, load_adapter_state
from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods.shira import ShiraConfig
from tiny import IDS, llama, logits, quantized, shake

# what PEFT's own sparse product says
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(24, 16)

    def forward(self, x):
        return self.linear(x)


def sparse(**fields):
    model = Layer()
    attach(model, ShiraConfig(r=3, target_modules=["linear"], **fields))
    return shake(model, 0.5)


def site_of(model):
    return adapters_of(model).sites("default")[0][1]


def dense(site, values):
    matrix = torch.zeros(16, 24)
    for (row, column), value in zip(site.shira_indices.weight.T.tolist(), values, strict=True):
        matrix[row, column] += value
    return matrix


def test_output_and_gradients_are_those_of_the_dense_formula():
    model = sparse()
    site, layer = site_of(model), model.linear.base_layer
    x = torch.randn(2, 5, 24, requires_grad=True)
    model(x).square().sum().backward()
    values = site.shira_weight.weight.detach().requires_grad_()
    other = x.detach().requires_grad_()
    plain = other @ (layer.weight + dense(site, values)).T + layer.bias
    # another order of the same f32 sums
    assert_close(model(x), plain, atol=1e-5, rtol=0)
    plain.square().sum().backward()
    assert_close(x.grad, other.grad, atol=1e-4, rtol=1e-5)
    assert_close(site.shira_weight.weight.grad, values.grad, atol=1e-4, rtol=1e-5)


def test_it_has_as_many_values_as_lora_of_that_rank_in_places_of_their_own():
    indices = site_of(sparse()).shira_indices.weight
    assert indices.shape == (2, 3 * (16 + 24))
    assert len(set(map(tuple, indices.T.tolist()))) == indices.shape[1]


def test_magnitude_takes_the_largest_weights():
    model = sparse(mask_type="magnitude")
    rows, columns = site_of(model).shira_indices.weight.long()
    sizes = model.linear.base_layer.weight.abs()
    chosen = torch.zeros(16, 24, dtype=torch.bool)
    chosen[rows, columns] = True
    assert sizes[chosen].min() >= sizes[~chosen].max()


def test_a_file_with_places_by_magnitude_is_read_by_peft(tmp_path):
    peft = pytest.importorskip("peft")
    ours = shake(lorasmith.get_peft_model(llama(), ShiraConfig(r=2, mask_type="magnitude", task_type="CAUSAL_LM")))
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path)
    # another order of the same f32 sums
    assert_close(logits(theirs), logits(ours), atol=2e-6, rtol=0)


@pytest.mark.parametrize("seed", [None, 5])
def test_random_places_are_pefts(seed):
    peft = pytest.importorskip("peft")
    fields = {"r": 2, "random_seed": seed, "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(llama(), peft.ShiraConfig(**fields))
    ours = lorasmith.get_peft_model(llama(), ShiraConfig(**fields))
    for path, site in adapters_of(ours.get_base_model()).sites("default"):
        layer = theirs.base_model.model.get_submodule(path)
        assert torch.equal(layer.shira_indices["default"], site.shira_indices.weight)


@pytest.mark.parametrize("place", [-1, 16])
def test_places_outside_the_matrix_are_refused(place):
    model = sparse()
    state = {key: value.clone() for key, value in adapter_state(model).items()}
    (key,) = [key for key in state if key.endswith("shira_indices")]
    state[key][0, 3] = place
    with pytest.raises(AdapterError, match="places outside the 16 x 24 matrix"):
        load_adapter_state(model, state)


def test_places_by_magnitude_are_found_in_quantized_weights():
    model = quantized(llama())
    attach(model, ShiraConfig(r=2, mask_type="magnitude"))
    before = logits(model)
    assert not torch.equal(logits(shake(model)), before)


def test_autocast_leaves_the_sparse_product_in_float32():
    model = llama()
    attach(model, ShiraConfig(r=2))
    shake(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=IDS).logits.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in adapters_of(model).parameters("default"))


def test_excluded_modules_are_told_to_peft_by_the_names_of_the_others():
    config = attach(llama(), ShiraConfig(r=2, target_modules="attention", exclude_modules=["o_proj"])).configs[
        "default"
    ]
    assert (config.target_modules, config.exclude_modules) == (["k_proj", "q_proj", "v_proj"], None)


def test_more_values_than_weights_are_refused_with_the_largest_rank():
    with pytest.raises(AttachError, match="choose at most 9"):
        attach(Layer(), ShiraConfig(r=10, target_modules=["linear"]))
