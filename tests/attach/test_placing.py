import pytest
import torch
from torch import nn

from lorasmith.attach import Adapted, adapters_of, attach, base_modules
from lorasmith.errors import AttachError
from lorasmith.methods.bitfit import BitFitConfig
from lorasmith.methods.loha import LoHaConfig
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.p_tuning import PromptEncoderConfig
from tiny import IDS, bert, llama, logits, shake


def placed(model: nn.Module) -> list[str]:
    return [path for path, module in base_modules(model) if isinstance(module, Adapted)]


def lora(model: nn.Module, **fields: object) -> list[str]:
    attach(model, LoraConfig(**fields))
    return placed(model)


def test_all_linear_means_every_linear_layer_but_the_head():
    paths = lora(llama(), target_modules="all-linear")
    assert len(paths) == 2 * 7
    assert "lm_head" not in paths


def test_all_linear_leaves_a_classifiers_head_to_be_trained_whole():
    model = bert()
    paths = lora(model, target_modules="all-linear", task_type="SEQ_CLS")
    assert "classifier" not in paths
    assert [path for path, _ in adapters_of(model).saved_modules()] == ["classifier"]


def test_no_targets_take_pefts_choice_for_the_family():
    assert {path.rpartition(".")[2] for path in lora(llama())} == {"q_proj", "v_proj"}


def test_an_expression_must_match_the_whole_path():
    assert lora(llama(), target_modules=r"model\.layers\.0\.mlp\..*_proj") == [
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]


def test_layers_to_transform_confines_the_targets():
    paths = lora(llama(), target_modules="all-linear", layers_to_transform=[1])
    assert {path.split(".")[2] for path in paths} == {"1"}


def test_excluded_modules_stay_as_they_are():
    paths = lora(llama(), target_modules="all-linear", exclude_modules=["down_proj"])
    assert len(paths) == 2 * 6


def test_no_match_is_an_error_with_the_nearest_name_and_changes_nothing():
    model = llama()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(AttachError, match=r"q_porj.*Did you mean 'q_proj'"):
        attach(model, LoraConfig(target_modules=["q_porj"]))
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_family_without_targets_lists_the_linear_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(AttachError, match=r"0, 2"):
        attach(model, LoraConfig())


def test_a_target_without_a_weight_matrix_is_refused_by_path():
    with pytest.raises(AttachError, match=r"model\.norm is a LlamaRMSNorm"):
        attach(llama(), LoraConfig(target_modules=["model.norm"]))


def test_a_plain_module_without_a_config_is_adapted_too():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert lora(model, target_modules="all-linear", r=2) == ["0", "2"]
    assert model(torch.randn(3, 4)).shape == (3, 2)
    assert "lora_A" in repr(model)


def test_bitfit_without_biases_is_refused():
    with pytest.raises(AttachError, match="biases"):
        attach(llama(attention_bias=False), BitFitConfig())


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training"])
def test_names_that_would_break_paths_are_refused(name):
    with pytest.raises(AttachError, match="adapter name"):
        attach(llama(), LoraConfig(), name)


def test_a_name_is_taken_once():
    model = llama()
    attach(model, LoraConfig())
    with pytest.raises(AttachError, match="exists already"):
        attach(model, LoraConfig())


def test_a_missing_module_to_save_is_named():
    with pytest.raises(AttachError, match=r"norn.*Did you mean 'norm'"):
        attach(llama(), LoraConfig(modules_to_save=["norn"]))


def test_active_adapters_add_up():
    model = llama()
    attach(model, LoraConfig(), "one")
    attach(model, LoraConfig(target_modules=["o_proj"]), "two")
    base, book = logits(llama()), adapters_of(model)
    book.activate(["one", "two"])
    shake(model)
    both = logits(model)
    book.activate("one")
    one = logits(model)
    assert not torch.equal(both, one) and not torch.equal(one, base)
    assert {p.requires_grad for p in book.parameters("two")} == {False}
    assert {p.requires_grad for p in book.parameters("one")} == {True}


def test_no_gradient_flows_below_the_lowest_adapter():
    model = llama()
    attach(model, LoraConfig(target_modules=["down_proj"], layers_to_transform=[1]))
    seen = []
    model.model.layers[0].register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    model(input_ids=IDS)
    assert seen == [False]


@pytest.mark.parametrize("config", [LoraConfig, LoHaConfig])
def test_a_pattern_that_means_no_adapted_module_is_warned_of(config, caplog):
    attach(llama(), config(target_modules=["q_proj", "v_proj"], rank_pattern={"q_prj": 2, "layers.0.*v_proj": 4}))
    assert [record.message for record in caplog.records] == [
        "rank_pattern of modules that are not adapted: q_prj. Did you mean 'q_proj'?"
    ]


def test_the_word_for_the_bare_base_names_no_adapter():
    with pytest.raises(AttachError, match="means the bare base"):
        attach(llama(), LoraConfig(), "__base__")


def test_a_module_around_another_adapters_is_not_saved_whole():
    model = llama()
    book = attach(model, LoraConfig(target_modules=["gate_proj"]), "a")
    with pytest.raises(AttachError, match=r"gate_proj, which lies in model.layers.0.mlp, has an adapter already"):
        attach(model, LoraConfig(modules_to_save=["mlp"]), "b")
    assert (book.active, len(book.sites("a"))) == (["a"], 2)


@pytest.mark.parametrize("names", [["mlp", "gate_proj"], ["gate_proj", "mlp"]])
def test_modules_to_save_do_not_nest(names):
    model = llama()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(AttachError, match=r"modules_to_save: .* lies in"):
        attach(model, LoraConfig(modules_to_save=names))
    assert [name for name, _ in model.named_modules()] == before


def test_a_prompt_is_in_the_mode_of_its_model():
    model = llama()
    attach(model, PromptEncoderConfig(num_virtual_tokens=3))
    assert not any(module.training for module in model.modules())
