"""Weighted adapters beside PEFT's, and the claims that PEFT does not keep."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

import lorasmith
from lorasmith.attach import (
    COMBINATION_TYPES,
    Composition,
    Part,
    adapters_of,
    attach,
    compose,
    content_of,
    distance_from_sum,
    read_adapter,
    save_adapter,
    write_adapter,
)
from lorasmith.errors import AttachError
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.lora import LoraConfig
from tiny import bert, llama, logits, mixtral, quantized, shake

# of order 1 in f32, summed in another order and, with svd, decomposed
TOLERANCE = {"atol": 2e-5, "rtol": 0}
SETTINGS = {
    name: {"density": 0.4} if any(word in name for word in ("ties", "dare", "prune")) else {}
    for name in COMBINATION_TYPES
}
DETERMINISTIC = [name for name in COMBINATION_TYPES if not name.startswith("dare")]


def config(**fields: object) -> LoraConfig:
    return LoraConfig(**({"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | fields))


def model_with(*configs, build=llama) -> nn.Module:
    """A model with an adapter a config, named a, b, c, each moved away from its start by its own noise."""
    model = build()
    for number, (name, wanted) in enumerate(zip("abc", configs)):
        book = attach(model, wanted, name)
        torch.manual_seed(number)
        for parameter in book.parameters(name):
            nn.init.normal_(parameter, std=0.2)
    return model


def parts_of(model: nn.Module, *weights: float) -> list[Part]:
    book = adapters_of(model)
    return [Part(name, content_of(book, name), weight) for name, weight in zip("abc", weights)]


def change(model: nn.Module, name: str, path: str) -> torch.Tensor:
    """The update of one module's weight by one adapter."""
    adapted = model.get_submodule(path)
    return adapted.sites[name].delta(torch.zeros_like(adapted.weight, dtype=torch.float32))


Q = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -1.0), (-0.5, 2.0)])
@pytest.mark.parametrize("how", DETERMINISTIC)
def test_it_equals_pefts_weighted_adapter(how, weights, tmp_path):
    peft = pytest.importorskip("peft")
    ours = model_with(config(), config(target_modules=["q_proj", "up_proj"], lora_alpha=3, use_rslora=False))
    for name in "ab":
        save_adapter(ours, tmp_path, name)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "a", adapter_name="a").eval()
    theirs.load_adapter(tmp_path / "b", "b")
    wrapped = lorasmith.PeftModel.around(ours)
    for model in (wrapped, theirs):
        model.add_weighted_adapter(["a", "b"], list(weights), "both", how, **SETTINGS[how])
        model.set_adapter("both")
    assert_close(logits(ours), logits(theirs), **TOLERANCE)


@pytest.mark.parametrize("how", COMBINATION_TYPES)
def test_the_result_is_saved_and_loads_here_and_in_peft(how, tmp_path):
    peft = pytest.importorskip("peft")
    # ranks by module, with which PEFT's own result cannot be loaded again
    ranks = {"rank_pattern": {"v_proj": 2, r"layers\.0\.mlp\..*": 3}, "alpha_pattern": {"q_proj": 9}}
    model = lorasmith.PeftModel.around(model_with(config(**ranks), config(**ranks)))
    model.add_weighted_adapter(["a", "b"], [0.6, 0.9], "both", how, **SETTINGS[how])
    model.set_adapter("both")
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    again = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "both")
    assert torch.equal(logits(again), logits(model))
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "both").eval()
    assert_close(logits(theirs), logits(model), **TOLERANCE)


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_cat_and_svd_are_the_exact_sum_over_ranks_and_scalings(how):
    model = model_with(config(r=2, use_rslora=True), config(r=5, lora_alpha=3), config(target_modules=["q_proj"]))
    wrapped = lorasmith.PeftModel.around(model)
    weights = [0.5, -1.5, 2.0]
    wrapped.add_weighted_adapter(["a", "b", "c"], weights, "sum", how, svd_rank=11)
    for path in (Q, "model.layers.0.mlp.down_proj"):
        names = "abc" if path == Q else "ab"
        expected = sum(weight * change(model, name, path) for weight, name in zip(weights, names))
        assert_close(change(model, "sum", path), expected, atol=1e-5, rtol=0)
    # the ranks that a module's adapters have together, no more
    assert wrapped.peft_config["sum"].rank_of("model.layers.0.mlp.down_proj") == 7
    assert wrapped.peft_config["sum"].rank_of(Q) == 11


def beside_peft(folder, *configs):
    """Our model and PEFT's with the same adapters a and b."""
    peft = pytest.importorskip("peft")
    ours = model_with(*configs)
    for name in "ab":
        save_adapter(ours, folder, name)
    theirs = peft.PeftModel.from_pretrained(llama(), folder / "a", adapter_name="a").eval()
    theirs.load_adapter(folder / "b", "b")
    return lorasmith.PeftModel.around(ours), theirs


def test_rank_stabilised_adapters_keep_their_strength_which_they_gain_in_peft(tmp_path):
    ours, theirs = beside_peft(tmp_path, config(use_rslora=True), config(use_rslora=True))
    for model in (ours, theirs):
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", "cat")
    exact = 0.5 * (change(ours.get_base_model(), "a", Q) + change(ours.get_base_model(), "b", Q))
    assert_close(change(ours.get_base_model(), "both", Q), exact, atol=1e-5, rtol=0)
    # the rank is 8 there, its alpha too, and the root of it divides
    other = theirs.get_base_model().get_submodule(Q).get_delta_weight("both")
    assert_close(other, exact * 8**0.5, atol=1e-4, rtol=0)


def test_ranks_by_module_are_written_which_peft_leaves_out(tmp_path):
    fields = {"rank_pattern": {"v_proj": 2}}
    ours, theirs = beside_peft(tmp_path, config(**fields), config(**fields))
    for name, model in (("ours", ours), ("theirs", theirs)):
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", "linear")
        model.save_pretrained(tmp_path / name, selected_adapters=["both"])
    again = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "ours" / "both")
    assert again.peft_config["default"].rank_of("model.layers.0.self_attn.v_proj") == 2
    with pytest.raises(RuntimeError, match="size mismatch"):
        type(theirs).from_pretrained(llama(), tmp_path / "theirs" / "both")


def test_adapters_that_began_as_parts_of_the_base_are_summed_as_changes_of_it():
    model = llama()
    for name in "ab":
        book = attach(model, config(r=3, init_lora_weights="pissa"), name)
        shake(model)
    wrapped = lorasmith.PeftModel.around(model)
    wrapped.add_weighted_adapter(["a", "b"], [0.5, -1.0], "sum", "cat")
    exact = 0.5 * change(model, "a", Q) - change(model, "b", Q)
    assert exact.norm() > 0.1
    assert_close(change(model, "sum", Q), exact, atol=1e-5, rtol=0)
    assert book.configs["sum"].init_lora_weights is True


def test_an_adapter_and_its_negation_cancel():
    model = model_with(config(), config())
    adapters_of(model).activate([])
    base = logits(model)
    wrapped = lorasmith.PeftModel.around(model)
    wrapped.add_weighted_adapter(["a"], [-1.0], "minus", "linear")
    wrapped.set_adapter(["a", "minus"])
    assert_close(logits(model), base, **TOLERANCE)


def test_a_lower_rank_is_the_nearest_of_that_rank():
    model = model_with(config(), config())
    exact = compose(parts_of(model, 1.0, 1.0), Composition("cat"))
    parts = parts_of(model, 1.0, 1.0)
    nearer = [distance_from_sum(parts, compose(parts, Composition("svd", svd_rank=rank))) for rank in (1, 3, 5, 8)]
    assert distance_from_sum(parts, exact) < 1e-6
    assert nearer == sorted(nearer, reverse=True)
    assert nearer[-1] < 1e-5
    total = sum(change(model, name, Q) for name in "ab")
    lorasmith.PeftModel.around(model).add_weighted_adapter(["a", "b"], [1.0, 1.0], "low", "svd", svd_rank=3)
    tail = torch.linalg.svdvals(total)[3:].norm()
    assert float((change(model, "low", Q) - total).norm()) == pytest.approx(float(tail), rel=1e-3)


def test_the_distance_from_the_sum_is_that_of_the_matrices():
    model = model_with(config(), config())
    parts = parts_of(model, 0.6, 0.6)
    result = compose(parts, Composition("linear"))
    lorasmith.PeftModel.around(model).add_weighted_adapter(["a", "b"], [0.6, 0.6], "both", "linear")
    paths = [path for path, _ in adapters_of(model).sites("a")]
    exact = [sum(0.6 * change(model, name, path) for name in "ab").flatten() for path in paths]
    made = [change(model, "both", path).flatten() for path in paths]
    expected = (torch.cat(made) - torch.cat(exact)).norm() / torch.cat(exact).norm()
    assert distance_from_sum(parts, result) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("how", [name for name in COMBINATION_TYPES if name.startswith("dare")])
def test_what_dare_drops_is_the_seeds_choice_alone(how):
    whole, fewer = model_with(config(), config()), model_with(config(), config())
    states = []
    for model, seed in ((whole, 0), (fewer, 0), (whole, 1)):
        parts = parts_of(model, 0.5, 0.5)
        if model is fewer:
            # another set of modules, the same choice in those that are left
            parts = [
                part._replace(content=part.content.__class__(part.content.config, only(part.content.state, Q)))
                for part in parts
            ]
        states.append(compose(parts, Composition(how, density=0.5, seed=seed)).state)
    for key, value in states[1].items():
        assert torch.equal(value, states[0][key])
        assert not torch.equal(value, states[2][key])


def only(state, path):
    return {key: value for key, value in state.items() if path in key}


def test_ranks_that_must_be_alike_are_named():
    model = model_with(config(r=2), config(r=3))
    with pytest.raises(AttachError, match=r"ranks 2, 3.*linear.*use cat"):
        compose(parts_of(model, 1.0, 1.0), Composition("linear"))


def test_embeddings_convolutions_and_biases_are_summed_exactly(tmp_path):
    fields = {"target_modules": ["embed_tokens", "q_proj"], "lora_bias": True, "r": 3}
    model = model_with(config(**fields), config(**(fields | {"r": 2})))
    wrapped = lorasmith.PeftModel.around(model)
    for how in ("cat", "svd"):
        wrapped.add_weighted_adapter(["a", "b"], [0.5, -2.0], how, how, svd_rank=5)
        for path in (Q, "model.embed_tokens"):
            sites = model.get_submodule(path).sites
            expected = 0.5 * change(model, "a", path) - 2 * change(model, "b", path)
            assert_close(change(model, how, path), expected, atol=1e-5, rtol=0)
            if path == Q:
                bias = 0.5 * sites["a"].delta_bias(None) - 2 * sites["b"].delta_bias(None)
                assert_close(sites[how].delta_bias(None), bias, atol=1e-6, rtol=0)


def test_folders_of_adapted_embeddings_are_composed_with_the_rows_that_they_hold(tmp_path):
    fields = {"target_modules": ["embed_tokens"], "r": 2}
    model = model_with(config(**fields), config(**fields))
    for name in "ab":
        save_adapter(model, tmp_path, name)
    parts = [Part(name, read_adapter(tmp_path / name), 0.5) for name in "ab"]
    assert any(key.endswith("embed_tokens.base_layer.weight") for key in parts[0].content.state)
    write_adapter(compose(parts, Composition("cat")), tmp_path / "both")
    again = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "both").get_base_model()
    exact = 0.5 * (change(model, "a", "model.embed_tokens") + change(model, "b", "model.embed_tokens"))
    assert_close(change(again, "default", "model.embed_tokens"), exact, atol=1e-5, rtol=0)


def test_convolutions_are_combined_as_their_kernels():
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv1d(2, 2, 1), nn.Conv2d(6, 8, 1))

    fields = {"task_type": None, "target_modules": ["0", "2"], "r": 2}
    model = model_with(config(**fields), config(**fields), build=build)
    wrapped = lorasmith.PeftModel.around(model)
    for how in ("cat", "svd", "linear"):
        wrapped.add_weighted_adapter(["a", "b"], [0.5, 1.0], how, how, svd_rank=4)
        for path in ("0", "2"):
            exact = 0.5 * change(model, "a", path) + change(model, "b", path)
            assert (change(model, how, path) - exact).norm() < (3 if how == "linear" else 1e-5)


def test_a_quantized_base_in_16_bits_gets_the_same_adapter():
    def build() -> nn.Module:
        return quantized(llama().to(torch.bfloat16))

    plain, packed = model_with(config(), config()), model_with(config(), config(), build=build)
    for how in ("ties_svd", "linear"):
        states = [compose(parts_of(model, 0.4, 0.8), Composition(how, density=0.5)).state for model in (plain, packed)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    wrapped = lorasmith.PeftModel.around(packed)
    wrapped.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both", "cat")
    assert wrapped.active_adapters == ["b"]
    wrapped.set_adapter("both")
    together = logits(packed)
    wrapped.set_adapter(["a", "b"])
    # bf16 activations, rounded in another order
    assert_close(together, logits(packed), atol=0.05, rtol=0)


def test_a_head_that_one_adapter_trains_comes_along_and_two_are_refused(tmp_path):
    fields = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    model = model_with(config(**fields), config(**fields), build=bert)
    with pytest.raises(AttachError, match=r"a and b both train .*classifier.* whole"):
        compose(parts_of(model, 1.0, 1.0), Composition("linear"))
    encoder = config(task_type=None, target_modules=["query", "value"])
    model = model_with(encoder, config(**fields), build=bert)
    wrapped = lorasmith.PeftModel.around(model)
    wrapped.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both", "cat")
    wrapped.set_adapter("both")
    assert torch.equal(model.classifier.acting.weight, model.classifier.modules_to_save["b"].weight)


def test_ia3_equals_pefts_weighted_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    model = model_with(IA3Config(task_type="CAUSAL_LM"), IA3Config(task_type="CAUSAL_LM"))
    for name in "ab":
        save_adapter(model, tmp_path, name)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "a", adapter_name="a").eval()
    theirs.load_adapter(tmp_path / "b", "b")
    wrapped = lorasmith.PeftModel.around(model)
    for each in (wrapped, theirs):
        each.add_weighted_adapter(["a", "b"], [0.3, 0.7], "both")
        each.set_adapter("both")
    assert_close(logits(model), logits(theirs), atol=2e-6, rtol=0)


def test_what_has_no_sum_is_refused_by_name():
    model = model_with(config(), IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(AttachError, match="a: LORA, b: IA3"):
        compose(parts_of(model, 1.0, 1.0), Composition())
    biased = model_with(config(bias="lora_only"))
    with pytest.raises(AttachError, match="bias='lora_only'"):
        compose(parts_of(biased, 1.0), Composition())
    experts = model_with(config(target_parameters=["experts.down_proj"]), build=mixtral)
    with pytest.raises(AttachError, match="target_parameters="):
        compose(parts_of(experts, 1.0), Composition())
    bottleneck = model_with(lorasmith.BottleneckConfig(task_type="CAUSAL_LM"))
    with pytest.raises(AttachError, match="BOTTLENECK have no weighted sum"):
        compose(parts_of(bottleneck, 1.0), Composition())
    with pytest.raises(AttachError, match="Did you mean 'ties'"):
        Composition("tise", density=0.5)


def test_names_and_weights_are_checked_before_anything_is_made():
    wrapped = lorasmith.PeftModel.around(model_with(config(), config()))
    with pytest.raises(AttachError, match="2 adapters and 1 weights"):
        wrapped.add_weighted_adapter(["a", "b"], [1.0], "both")
    with pytest.raises(AttachError, match="'b' exists already"):
        wrapped.add_weighted_adapter(["a"], [1.0], "b")
    with pytest.raises(AttachError, match="'z' does not exist"):
        wrapped.add_weighted_adapter(["z"], [1.0], "both")


def test_the_parts_are_left_as_they_were():
    model = model_with(config(), config())
    before = {key: value.clone() for key, value in content_of(adapters_of(model), "a").state.items()}
    shake(model, 0.0)
    lorasmith.PeftModel.around(model).add_weighted_adapter(["a", "b"], [2.0, 1.0], "both", "svd", svd_rank=2)
    after = content_of(adapters_of(model), "a").state
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_layers_and_exclusions_of_the_parts_do_not_leak(tmp_path):
    model = model_with(config(layers_to_transform=[1]), config(target_modules=["q_proj"], exclude_modules=["v_proj"]))
    wrapped = lorasmith.PeftModel.around(model)
    wrapped.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both", "cat")
    touched = {path for path, _ in adapters_of(model).sites("both")}
    assert touched == {path for name in "ab" for path, _ in adapters_of(model).sites(name)}
    save_adapter(model, tmp_path, "both")
    assert set(load_file(tmp_path / "both" / "adapter_model.safetensors")) == set(read_adapter(tmp_path / "both").state)
