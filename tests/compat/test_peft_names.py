"""Every name that PEFT exports is here, or stands in a list with the reason why not; and what the functions do."""

import importlib
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lorasmith
from lorasmith import IA3Config, LoraConfig, PeftModel, get_peft_model
from lorasmith.attach import adapters_of
from lorasmith.compat.absent import why_absent
from lorasmith.errors import AdapterError, AttachError
from tiny import bert, llama, logits, mixtral, quantized, shake

NAMES = Path(__file__).resolve().parents[2] / "docs" / "peft-names.md"


def adapted(build=llama, **fields: object) -> PeftModel:
    return shake(get_peft_model(build(), LoraConfig(**({"task_type": "CAUSAL_LM"} | fields))).eval())


def test_every_name_that_peft_exports_is_here_or_has_its_reason():
    peft = pytest.importorskip("peft")
    silent = [name for name in peft.__all__ if name not in lorasmith.__all__ and why_absent(name) is None]
    assert not silent, f"neither exported nor explained: {silent}"


def test_reasons_are_only_given_for_names_of_peft():
    assert why_absent("train") is None
    assert why_absent("Lora") is None
    assert why_absent("NoSuchConfig") is None


def test_the_page_says_of_each_absent_name_what_the_import_says():
    said = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", NAMES.read_text(), flags=re.MULTILINE))
    assert {name: why_absent(name) for name in said} == said
    peft = pytest.importorskip("peft")
    by_rule = {name for name in peft.__all__ if name.endswith(("Config", "Model"))}
    absent = [name for name in peft.__all__ if name not in lorasmith.__all__ and name not in by_rule]
    unlisted = [name for name in absent if name not in said and "is not built" not in str(why_absent(name))]
    assert not unlisted


def test_importing_an_absent_name_is_one_line_that_says_what_to_use():
    with pytest.raises(ImportError) as caught:
        importlib.import_module("lorasmith").PEFT_TYPE_TO_TUNER_MAPPING  # noqa: B018
    assert "use get_peft_model" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImportError, match="find_kappa_target_modules: "):
        exec("from lorasmith import find_kappa_target_modules")
    with pytest.raises(AttributeError):
        importlib.import_module("lorasmith").no_such_thing  # noqa: B018


def test_tables_hold_what_there_is():
    assert lorasmith.PEFT_TYPE_TO_CONFIG_MAPPING["LORA"] is LoraConfig
    assert lorasmith.MODEL_TYPE_TO_PEFT_MODEL_MAPPING["CAUSAL_LM"] is lorasmith.PeftModelForCausalLM
    with pytest.raises(lorasmith.PeftError):
        get_peft_model(llama(), LoraConfig(target_modules=["nothing"]))
    with pytest.raises(lorasmith.NoMatchingPeftModuleError):
        get_peft_model(llama(), LoraConfig(target_modules=["nothing"]))


# --- status


# PEFT names the layers of IA3 without the method, and freezes an adapter that it switches off
APART = {"ia3": {"module_type"}, "disabled": {"requires_grad", "trainable_params"}}


def without(fields: dict, names: set[str]) -> dict:
    return {name: value for name, value in fields.items() if name not in names}


EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


@pytest.mark.parametrize("case", ["lora", "ia3", "two", "whole", "disabled", "experts"])
def test_status_reports_equal_pefts(case):
    peft = pytest.importorskip("peft")

    def build(library):
        if case == "ia3":
            return library.get_peft_model(llama(), library.IA3Config(task_type="CAUSAL_LM"))
        if case == "experts":
            return library.get_peft_model(mixtral(), library.LoraConfig(task_type="CAUSAL_LM", **EXPERTS))
        extra = {"modules_to_save": ["lm_head"]} if case == "whole" else {}
        targets = {"target_modules": ["q_proj", "embed_tokens"]}
        model = library.get_peft_model(llama(), library.LoraConfig(task_type="CAUSAL_LM", **targets, **extra))
        if case == "two":
            model.add_adapter("other", library.LoraConfig(target_modules=["v_proj"]))
        if case == "disabled":
            model.base_model.disable_adapter_layers() if library is peft else model.disable_adapters()
        return model

    ours, theirs = build(lorasmith), build(peft)
    apart = APART.get(case, set())
    for mine, other in zip(ours.get_layer_status(), theirs.get_layer_status(), strict=True):
        assert without(asdict(mine), apart) == without(asdict(other), apart)
    mine, other = asdict(ours.get_model_status()), asdict(theirs.get_model_status())
    # the class that PEFT places a method with
    assert without(mine, apart | {"adapter_model_type"}) == without(other, apart | {"adapter_model_type"})
    assert [field.name for field in fields(lorasmith.get_model_status(ours))] == [
        field.name for field in fields(peft.get_model_status(theirs))
    ]


def test_status_tells_merged_and_quantized_layers():
    model = adapted(lambda: quantized(llama()))
    assert model.get_model_status().quantization_backend == "lorasmith nf4"
    model = adapted()
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]
    inner = lorasmith.inject_adapter_in_model(LoraConfig(), llama())
    assert lorasmith.get_layer_status(inner)[0].name == "model.layers.0.self_attn.q_proj"
    with pytest.raises(AttachError, match="no module is adapted"):
        lorasmith.get_layer_status(llama())


# --- attaching


def test_an_injected_adapter_is_the_models_own():
    model = llama()
    assert lorasmith.inject_adapter_in_model(LoraConfig(), model) is model
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    with pytest.raises(AttachError, match="use get_peft_model"):
        lorasmith.inject_adapter_in_model(lorasmith.PromptTuningConfig(num_virtual_tokens=2), llama())


def test_a_state_dict_names_the_modules_to_inject():
    source = adapted(target_modules=["k_proj", "down_proj"], layers_to_transform=[1])
    state = lorasmith.get_peft_model_state_dict(source)
    model = lorasmith.inject_adapter_in_model(LoraConfig(), llama(), state_dict=state)
    assert [path for path, _ in adapters_of(model).sites("default")] == [
        path for path, _ in source.adapters.sites("default")
    ]
    lorasmith.set_peft_model_state_dict(model, state)
    assert torch.equal(logits(model), logits(source))


def test_a_mixed_model_lets_adapters_of_several_methods_act_together():
    model = get_peft_model(llama(), LoraConfig(), mixed=True)
    assert isinstance(model, lorasmith.PeftMixedModel)
    one = logits(shake(model))
    model.add_adapter("scales", IA3Config(task_type="CAUSAL_LM"))
    model.set_adapter(["default", "scales"])
    assert model.active_adapters == ["default", "scales"]
    assert not torch.equal(logits(shake(model)), one)
    model.delete_adapter(["scales"])
    assert list(model.peft_config) == ["default"]


def test_gradients_are_switched_by_adapter():
    model = adapted()
    model.add_adapter("other", LoraConfig(target_modules=["o_proj"]))
    model.set_requires_grad(["other"])
    assert all(p.requires_grad for p in model.adapters.parameters("other"))
    model.set_requires_grad("default", False)
    assert not any(p.requires_grad for p in model.adapters.parameters("default"))


# --- loading


def test_keys_are_renamed_on_loading(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    from_file = lorasmith.load_peft_weights(tmp_path, key_mapping={r"^model\.layers": "decoder.layers"})
    assert {key.split(".")[2] for key in from_file} == {"decoder"}
    other = llama()
    again = PeftModel.from_pretrained(other, tmp_path, key_mapping={r"nothing": "x"})
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(AdapterError, match=r"unexpected base_model\.model\.decoder"):
        PeftModel.from_pretrained(llama(), tmp_path, key_mapping={r"^model\.layers\.1.*v_proj.lora_B": "decoder"})


def test_tensors_of_another_shape_are_left_out_on_request(tmp_path, caplog):
    adapted(build=bert, task_type="SEQ_CLS").save_pretrained(tmp_path)
    model = bert()
    model.classifier = nn.Linear(32, 5)
    model.config.num_labels = 5
    with pytest.raises(AdapterError, match=r"classifier.weight has shape \(3, 32\)"):
        PeftModel.from_pretrained(model, tmp_path)
    before = model.classifier.weight.clone()
    loaded = PeftModel.from_pretrained(model, tmp_path, ignore_mismatched_sizes=True)
    assert torch.equal(loaded.classifier.acting.weight, before)
    assert "classifier.weight has shape (3, 32) and the model needs (5, 32)" in caplog.text


def test_arguments_without_effect_are_taken_and_unknown_ones_are_told(tmp_path, caplog):
    model = adapted()
    model.save_pretrained(tmp_path)
    known = {"torch_device": "cpu", "low_cpu_mem_usage": True, "device_map": "auto", "torch_dtype": torch.float16}
    again = PeftModel.from_pretrained(llama(), tmp_path, **known)
    again.load_adapter(tmp_path, "second", **known)
    assert not caplog.text
    PeftModel.from_pretrained(llama(), tmp_path, ephemeral_gpu_offload=True)
    assert "ephemeral_gpu_offload" in caplog.text


# --- types and the base's own state


def test_frozen_parameters_are_cast_and_trained_ones_kept():
    for build in (llama, lambda: quantized(llama())):
        model = adapted(build)
        packed = {name: p.dtype for name, p in model.named_parameters() if not p.is_floating_point()}
        lorasmith.cast_mixed_precision_params(model, torch.bfloat16)
        for name, parameter in model.named_parameters():
            expected = torch.float32 if parameter.requires_grad else packed.get(name, torch.bfloat16)
            assert parameter.dtype == expected


def test_experts_are_told_from_what_adapts_them():
    model = adapted(mixtral, **EXPERTS)
    plain = mixtral().state_dict()
    state = lorasmith.get_base_model_state_dict(model)
    assert state.keys() == plain.keys()
    assert all(torch.equal(value, plain[key]) for key, value in state.items())


@pytest.mark.parametrize("changes", [{}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}])
def test_the_bases_own_state_has_its_own_keys_and_values(changes):
    plain = llama().state_dict()
    model = adapted(**changes)
    state = lorasmith.get_base_model_state_dict(model)
    assert state.keys() == plain.keys()
    assert all(torch.equal(value, plain[key]) for key, value in state.items())
    changed = adapted(**changes)
    before = changed.get_nb_trainable_parameters()
    result = lorasmith.set_base_model_state_dict(changed, llama(seed=5).state_dict())
    assert result.missing_keys == []
    with changed.disable_adapter():
        assert torch.equal(logits(changed), logits(llama(seed=5)))
    assert changed.get_nb_trainable_parameters() == before
    with pytest.raises(lorasmith.LorasmithError, match="unexpected stranger"):
        lorasmith.set_base_model_state_dict(model, plain | {"stranger": torch.zeros(1)})


# --- as LoRA


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer")
def test_a_lora_of_full_rank_is_what_another_method_does(tmp_path):
    model = shake(get_peft_model(llama(), IA3Config(task_type="CAUSAL_LM")).eval())
    lorasmith.save_as_lora(tmp_path, model, 32)
    again = PeftModel.from_pretrained(llama(), tmp_path)
    # a decomposition in f32 and back
    assert_close(logits(again), logits(model), atol=2e-5, rtol=0)
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert_close(logits(theirs), logits(model), atol=2e-5, rtol=0)


def test_a_share_of_the_squares_chooses_each_rank():
    model = adapted(target_modules="all-linear", r=6)
    config, state = lorasmith.convert_to_lora(model, 0.8)
    for path, site in model.adapters.sites("default"):
        squares = torch.linalg.svdvals(site.delta(torch.zeros(()))).double().square()
        share = squares.cumsum(0) / squares.sum()
        assert config.rank_of(path) == int((share < 0.8).sum()) + 1
        assert state[f"base_model.model.{path}.lora_A.weight"].shape[0] == config.rank_of(path)


def test_what_is_no_change_of_weights_has_no_lora():
    model = get_peft_model(llama(), lorasmith.BottleneckConfig(task_type="CAUSAL_LM"))
    with pytest.raises(AttachError, match="has no LoRA"):
        lorasmith.convert_to_lora(model, 4)
    with pytest.raises(AttachError, match="a bare parameter and has no LoRA"):
        lorasmith.convert_to_lora(adapted(mixtral, **EXPERTS), 4)
    with pytest.raises(AttachError, match="rank=0"):
        lorasmith.convert_to_lora(adapted(), 0)
