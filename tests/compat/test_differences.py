"""Where lorasmith differs from PEFT on purpose: what PEFT does, and what is done here (docs/migrating-from-peft.md)."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lorasmith
from lorasmith.errors import AdapterError, AttachError
from tiny import IDS, bert, llama, logits, quantized, shake

peft = pytest.importorskip("peft")

CAUSAL = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}


def theirs(base: nn.Module | None = None, **fields: object) -> nn.Module:
    return shake(peft.get_peft_model(base or llama(), peft.LoraConfig(**(CAUSAL | fields))).eval())


def ours(base: nn.Module | None = None, **fields: object) -> lorasmith.PeftModel:
    return shake(lorasmith.get_peft_model(base or llama(), lorasmith.LoraConfig(**(CAUSAL | fields))).eval())


def test_preparing_casts_nothing():
    bases = [llama().to(torch.bfloat16) for _ in range(2)]
    upcast = peft.prepare_model_for_kbit_training(bases[0], use_gradient_checkpointing=False)
    kept = lorasmith.prepare_model_for_kbit_training(bases[1], use_gradient_checkpointing=False)
    assert {p.dtype for p in upcast.parameters()} == {torch.float32}
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}


def test_reentrant_checkpointing_is_not_used_and_the_log_says_so(caplog):
    model = llama()
    lorasmith.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": True})
    assert "use_reentrant=True is ignored" in caplog.text
    assert model.model.layers[0].gradient_checkpointing


def what_peft_says_on_loading(folder: Path) -> str:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        peft.PeftModel.from_pretrained(llama(), folder)
    return " ".join(str(warning.message) for warning in said)


@pytest.fixture
def changed(tmp_path):
    """An adapter's folder with one tensor under another name."""
    ours().save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    state = load_file(path)
    key = next(key for key in sorted(state) if "lora_A" in key)
    state[key.replace("q_proj", "strange_proj")] = state.pop(key)
    save_file(state, path, {"format": "pt"})
    return tmp_path, key


def test_missing_and_unexpected_tensors_are_an_error_that_lists_them(changed):
    folder, key = changed
    assert "missing adapter keys" in what_peft_says_on_loading(folder)
    with pytest.raises(AdapterError) as raised:
        lorasmith.PeftModel.from_pretrained(llama(), folder)
    assert f"missing {key}" in str(raised.value)
    assert f"unexpected {key.replace('q_proj', 'strange_proj')}" in str(raised.value)


def test_an_adapter_with_more_rows_of_vocabulary_is_loaded(tmp_path):
    base = llama()
    base.resize_token_embeddings(70, mean_resizing=False)
    model = ours(base, target_modules=["q_proj", "embed_tokens"])
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size"):
        peft.PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(logits(lorasmith.PeftModel.from_pretrained(llama(), tmp_path)), logits(model))


def test_a_merged_base_still_has_its_own_state():
    key, merged = "model.layers.0.self_attn.q_proj.weight", theirs()
    merged.merge_adapter()
    assert not torch.equal(peft.get_base_model_state_dict(merged)[key], llama().state_dict()[key])
    model = ours(target_modules=["q_proj", "embed_tokens"])
    model.merge_adapter()
    plain = llama().state_dict()
    state = lorasmith.get_base_model_state_dict(model)
    assert all(torch.equal(value, plain[key]) for key, value in state.items())


def test_a_merged_adapter_of_an_embedding_is_saved_as_an_unmerged_one():
    model = ours(target_modules=["embed_tokens"])
    expected = {key: value.clone() for key, value in lorasmith.get_peft_model_state_dict(model).items()}
    model.merge_adapter()
    state = lorasmith.get_peft_model_state_dict(model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


def test_tensors_are_not_loaded_into_a_merged_adapter():
    other = theirs()
    zeros = {key: torch.zeros_like(value) for key, value in peft.get_peft_model_state_dict(other).items()}
    other.merge_adapter()
    peft.set_peft_model_state_dict(other, zeros)
    other.unmerge_adapter()
    assert not torch.allclose(logits(other), logits(llama()))
    model = ours(target_modules=["q_proj"])
    state = {key: torch.zeros_like(value) for key, value in lorasmith.get_peft_model_state_dict(model).items()}
    model.merge_adapter()
    merged = logits(model)
    with pytest.raises(lorasmith.LorasmithError, match=r"'default' is merged into the base.*unmerge first"):
        lorasmith.set_peft_model_state_dict(model, state)
    assert torch.equal(logits(model), merged)
    model.unmerge_adapter()
    lorasmith.set_peft_model_state_dict(model, state)
    assert torch.equal(logits(model), logits(llama()))


def test_unmerging_restores_every_bit():
    def turned(model: nn.Module) -> bool:
        """Whether merging and unmerging gave the same bits."""
        before = [p.clone() for p in model.base_model.model.model.layers.parameters()]
        model.merge_adapter()
        model.unmerge_adapter()
        after = model.base_model.model.model.layers.parameters()
        return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    assert not turned(theirs())
    assert turned(ours())


def test_merging_in_place_is_refused_over_a_quantized_base():
    with pytest.raises(AttachError, match="would erase small adapters"):
        ours(quantized(llama())).merge_adapter()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
# PEFT itself says that its output is not the base's
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias")
def test_switched_off_the_trained_biases_are_too(bias):
    plain = logits(llama())
    for model, same in ((theirs(bias=bias), False), (ours(bias=bias), True)):
        with model.disable_adapter():
            assert torch.equal(logits(model), plain) == same


def test_a_soft_prompt_adds_no_positions_to_the_logits():
    fields = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    with_virtual = peft.get_peft_model(llama(), peft.PromptTuningConfig(**fields))
    without = lorasmith.get_peft_model(llama(), lorasmith.PromptTuningConfig(**fields))
    assert logits(with_virtual).shape[1] == IDS.shape[1] + 4
    assert logits(without).shape[1] == IDS.shape[1]


def test_the_first_token_is_no_target_behind_a_soft_prompt():
    """PEFT's last virtual token predicts the first real one; here a loss is of the model's own positions."""
    fields = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    models = [
        shake(library.get_peft_model(llama(), library.PromptTuningConfig(**fields))) for library in (peft, lorasmith)
    ]
    rest = IDS.clone()
    rest[:, 0] = -100
    for labels, same in ((IDS, False), (rest, True)):
        losses = [model(input_ids=IDS, labels=labels).loss.item() for model in models]
        assert (abs(losses[0] - losses[1]) < 1e-5) == same


def test_the_names_of_the_classes_travel(tmp_path):
    names = {0: "no", 1: "maybe", 2: "yes"}
    fields = {"task_type": "SEQ_CLS", "target_modules": ["query"]}
    for library, kept in ((peft, False), (lorasmith, True)):
        base = bert()
        base.config.id2label = dict(names)
        library.get_peft_model(base, library.LoraConfig(**fields)).save_pretrained(tmp_path / library.__name__)
        again = library.PeftModel.from_pretrained(bert(), tmp_path / library.__name__)
        assert (again.config.id2label == names) == kept


def test_no_match_lists_the_linear_layers_and_the_nearest_name():
    with pytest.raises(ValueError, match="not found in the base model"):
        theirs(target_modules=["q_prj"])
    with pytest.raises(AttachError, match=r"its linear layers are: .*q_proj.* Did you mean 'q_proj'"):
        ours(target_modules=["q_prj"])


def test_a_target_that_matches_nothing_beside_others_is_warned_of(caplog):
    theirs(target_modules=["q_proj", "v_prj"])
    assert "v_prj" not in caplog.text
    ours(target_modules=["q_proj", "v_prj"])
    assert "match nothing: v_prj" in caplog.text
    assert "Did you mean 'v_proj'" in caplog.text


def test_pickles_are_neither_written_nor_read(tmp_path):
    theirs().save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").is_file()
    with pytest.raises(AdapterError, match="pickle"):
        lorasmith.PeftModel.from_pretrained(llama(), tmp_path)
    with pytest.raises(AdapterError, match="pickle"):
        ours().save_pretrained(tmp_path, safe_serialization=False)


def test_a_method_that_is_not_built_is_refused_with_those_that_are(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "FROM_THE_FUTURE"}))
    with pytest.raises(AdapterError, match=r"'FROM_THE_FUTURE' is not supported; supported: .*lora.*prompt_tuning"):
        lorasmith.PeftModel.from_pretrained(llama(), tmp_path)


def test_fields_of_a_newer_version_are_named_as_in_peft(tmp_path, caplog):
    ours().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_wings": True}))
    assert "use_wings" in what_peft_says_on_loading(tmp_path)
    lorasmith.PeftModel.from_pretrained(llama(), tmp_path)
    assert "use_wings" in caplog.text


def test_what_is_no_config_of_ours_is_refused_by_its_name():
    for config, named in (
        (None, "builtins.NoneType"),
        ({"r": 8}, "builtins.dict"),
        (peft.LoraConfig(), "peft.*LoraConfig"),
    ):
        with pytest.raises(AttachError, match=f"peft_config is a {named}; give a config of lorasmith's"):
            lorasmith.get_peft_model(llama(), config)
