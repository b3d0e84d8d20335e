"""LoRA on bare parameters: stacks of experts, routers, single matrices."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import (
    adapter_state,
    adapters_of,
    attach,
    load_adapter,
    merge_and_unload,
    merge_in_place,
    save_adapter,
    unload,
    unmerge,
)
from lorasmith.errors import AttachError
from lorasmith.methods import methods
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.activation_checkpointing import checkpoint_activations_
from lorasmith.ops import UpdatedWeight
from lorasmith.quantized import Scheme, quantize_module
from tiny import IDS, gpt_oss, llama, logits, mixtral, quantized, qwen_moe, shake

NAMES = ["experts.gate_up_proj", "experts.down_proj"]
MODELS = {"mixtral": mixtral, "qwen_moe": qwen_moe, "gpt_oss": gpt_oss, "mixtral in nf4": lambda: quantized(mixtral())}
# one product of f32 sums, and one rounding of the sum of weight and update
TOLERANCE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(params=MODELS)
def build(request):
    return MODELS[request.param]


def config(**changes):
    return LoraConfig(
        **({"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "target_parameters": NAMES} | changes)
    )


def adapted(build, **changes):
    model = build()
    attach(model, config(**changes))
    return shake(model)


def test_every_factor_gets_a_gradient_and_no_base_tensor_does(build):
    model = adapted(build)
    model(input_ids=IDS, labels=IDS).loss.backward()
    names = [name for name, p in model.named_parameters() if p.grad is not None]
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]
    experts = [name for name in names if "experts" in name]
    # two layers, two parameters, A and B
    assert len(experts) == 8
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in experts)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_way_to_compute_experts_gives_the_merged_models_logits(build, implementation):
    model = adapted(build)
    model.set_experts_implementation(implementation)
    before = logits(model)
    assert_close(logits(merge_and_unload(model)), before, **TOLERANCE)


def test_merged_in_place_and_back_every_bit_is_as_before():
    model = adapted(mixtral)
    before, weights = logits(model), {name: p.clone() for name, p in model.named_parameters()}
    merge_in_place(model)
    assert_close(logits(model), before, **TOLERANCE)
    assert not torch.equal(model.get_parameter(f"{INNER}.down_proj"), weights[f"{INNER}.down_proj"])
    unmerge(model)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


INNER = "model.layers.0.mlp.experts.base_layer.base_layer"


def test_switched_off_or_taken_off_the_base_is_bit_equal_again(build):
    before = logits(build())
    model = adapted(build)
    with adapters_of(model).disabled():
        assert torch.equal(logits(model), before)
    bare = unload(model)
    assert torch.equal(logits(bare), before)
    assert {name for name, _ in bare.named_parameters()} == {name for name, _ in build().named_parameters()}


def test_saved_and_loaded_the_logits_are_bit_equal(build, tmp_path):
    model = adapted(build)
    save_adapter(model, tmp_path)
    other = build()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


def test_gradients_are_the_same_with_recomputed_layers():
    plain, recomputed = adapted(mixtral), adapted(mixtral)
    checkpoint_activations_(recomputed)
    for model in (plain.train(), recomputed.train()):
        model(input_ids=IDS, labels=IDS).loss.backward()
    for (name, ours), (_, theirs) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert_close(theirs.grad, ours.grad, atol=1e-6, rtol=0)


def test_adapters_on_different_parameters_swap_without_mixing_and_save_as_if_alone(tmp_path):
    model = mixtral()
    attach(model, config(target_parameters=NAMES[1:]), "down")
    down = logits(shake(model))
    attach(model, config(), "both")
    both = logits(shake(model, 0.2))
    book = adapters_of(model)
    book.activate("down")
    assert torch.equal(logits(model), down)
    assert any("experts.lora_A" in key for key in adapter_state(model, "down"))
    assert not any("experts.base_layer" in key for key in adapter_state(model, "down"))
    book.activate(["down", "both"])
    mixed = logits(model)
    assert not torch.equal(mixed, both)
    save_adapter(model, tmp_path, "down")
    other = mixtral()
    load_adapter(other, tmp_path / "down")
    assert torch.equal(logits(other), down)
    assert_close(logits(merge_and_unload(model)), mixed, **TOLERANCE)


def test_a_16_bit_base_trains_float32_factors():
    model = mixtral().to(torch.bfloat16)
    book = attach(model, config())
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert {p.dtype for p in book.parameters("default")} == {torch.float32}
    assert logits(shake(model)).dtype == torch.bfloat16


def test_no_stack_is_made_dense_in_training(monkeypatch):
    monkeypatch.setattr(UpdatedWeight, "dense", lambda self: pytest.fail("the sum was made"))
    adapted(mixtral).train()(input_ids=IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize("build", [mixtral, qwen_moe, gpt_oss])
def test_all_linear_means_stacks_of_experts_too_and_the_log_says_so(build, caplog):
    model = build()
    book = attach(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    assert "includes 4 stacks of experts (experts.down_proj, experts.gate_up_proj" in caplog.text
    assert book.configs["default"].target_parameters == ["experts.down_proj", "experts.gate_up_proj"]
    assert len([path for path, _ in book.sites("default") if ".experts" in path]) == 4
    # the router chooses experts and stays as it is
    assert not any(path.endswith(".gate") for path, _ in book.sites("default"))


def test_all_linear_leaves_experts_out_where_asked_to():
    model = mixtral()
    book = attach(model, LoraConfig(target_modules="all-linear", target_parameters=[]))
    assert {path.rpartition(".")[2] for path, _ in book.sites("default")} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_all_linear_confined_to_a_layer_confines_the_experts(tmp_path):
    model = mixtral()
    book = attach(model, LoraConfig(target_modules="all-linear", layers_to_transform=[1], task_type="CAUSAL_LM"))
    assert {path.split(".")[2] for path, _ in book.sites("default")} == {"1"}
    save_adapter(shake(model), tmp_path)
    other = mixtral()
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


def test_what_cannot_sit_on_experts_is_said_in_the_log(caplog):
    attach(mixtral(), LoraConfig(target_modules="all-linear", lora_dropout=0.1))
    assert "leaves out 4 stacks of experts" in caplog.text
    assert "lora_dropout=0.1 has no meaning" in caplog.text


def test_names_of_feed_forward_layers_that_reach_no_expert_are_warned_of(caplog):
    attach(qwen_moe(), LoraConfig(target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"]))
    assert "down_proj, gate_proj, up_proj reach no expert" in caplog.text
    assert "target_parameters=['experts.down_proj', 'experts.gate_up_proj']" in caplog.text


def test_other_methods_say_that_they_do_not_reach_experts(caplog):
    attach(mixtral(), methods["bottleneck"].config_class(target_modules="all-linear"))
    assert "LoRA reaches bare parameters" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout=0.1 has no meaning on a bare parameter"),
        ({"lora_bias": True}, "lora_bias=True has no meaning"),
        ({"target_parameters": ["experts.gate_proj"]}, "experts.gate_proj names no parameter of Mixtral"),
        ({"target_parameters": ["input_layernorm.weight"]}, "name a matrix or a stack of matrices"),
        (
            {"target_modules": ["embed_tokens"], "target_parameters": ["embed_tokens.weight"]},
            "embed_tokens and its parameter weight are both targets",
        ),
    ],
)
def test_what_means_nothing_is_refused_and_changes_nothing(changes, message):
    model = mixtral()
    before = {name for name, _ in model.named_modules()}
    with pytest.raises(AttachError, match=message):
        attach(model, config(**changes))
    assert {name for name, _ in model.named_modules()} == before


def test_a_quantized_embedding_is_refused_as_a_bare_parameter():
    model = llama()
    model.model.embed_tokens = quantize_module(model.model.embed_tokens, Scheme(), "model.embed_tokens")
    with pytest.raises(AttachError, match="only dense parameters are adapted"):
        attach(model, config(target_modules=[], target_parameters=["embed_tokens.weight"]))


def test_the_weight_of_a_quantized_linear_layer_is_adapted_as_the_layer():
    model = quantized(llama())
    attach(model, config(target_modules=[], target_parameters=["q_proj.weight"]))
    before = logits(shake(model))
    assert_close(logits(merge_and_unload(model)), before, **TOLERANCE)


def test_files_from_before_peft_0_19_are_put_right(tmp_path, caplog):
    model = adapted(mixtral, r=4)
    save_adapter(model, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    for key in [key for key in state if "experts" in key and "lora_A" in key]:
        other = key.replace("lora_A", "lora_B")
        # what the old reading [experts, in, out] of the axes gave for the same sum
        a_ERI, b_ORE = state[key].unflatten(0, (3, 4)), state[other].unflatten(1, (4, 3))
        state[key] = b_ORE.permute(2, 1, 0).reshape(12, -1).contiguous()
        state[other] = a_ERI.permute(2, 1, 0).reshape(-1, 12).contiguous()
    save_file(state, tmp_path / "adapter_model.safetensors")
    older = mixtral()
    load_adapter(older, tmp_path)
    assert torch.equal(logits(older), logits(model))
    assert "before peft 0.19" in caplog.text


class Mixture(nn.Module):
    """A parameter of its own beside layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = Block()

    def forward(self, x):
        return self.block(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(6, 6))
        self.inside = nn.Linear(6, 6)

    def forward(self, x):
        return self.inside(torch.einsum("bi,oi->bo", x, self.mix))


def test_layers_inside_a_module_with_an_adapted_parameter_are_adapted_saved_and_merged(tmp_path):
    x = torch.randn(3, 6)
    model = Mixture()
    attach(model, LoraConfig(target_modules=["inside"], target_parameters=["block.mix"], r=2))
    attach(model, LoraConfig(target_modules=["inside"], target_parameters=["block.mix"], r=3), "second")
    y = shake(model)(x)
    assert json.dumps(sorted(adapter_state(model, "second"))).count("block.base_layer.inside.lora_") == 2
    save_adapter(model, tmp_path, "second")
    other = Mixture()
    load_adapter(other, tmp_path / "second")
    assert torch.equal(other(x), y)
    adapters_of(model).remove("default")
    assert torch.equal(model(x), y)
    assert_close(merge_and_unload(model)(x), y, **TOLERANCE)
    assert set(model.state_dict()) == set(Mixture().state_dict())
