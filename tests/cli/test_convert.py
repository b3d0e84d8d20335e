"""`lorasmith convert`: a state dict of loralib becomes a folder of PEFT's."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def foreign(tmp_path):
    torch.manual_seed(0)
    path = "model.layers.0.self_attn.q_proj"
    tensors = {f"{path}.lora_A": torch.randn(2, 32), f"{path}.lora_B": torch.randn(32, 2)}
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_the_folder_that_is_written_generates(lorasmith, foreign, model_folder, tmp_path):
    out = tmp_path / "out"
    answer = lorasmith("convert", foreign, "--alpha", 4, "--model", model_folder, "--task", "causal", "--out", out)
    assert answer.code == 0, answer.err
    assert "taken to be 4 / rank" in answer.out
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 4, "LORA")
    key = "model.layers.0.self_attn.q_proj.lora_B"
    written = load_file(out / "adapter_model.safetensors")[f"base_model.model.{key}.weight"]
    assert torch.equal(written, load_file(foreign)[key])
    answer = lorasmith("generate", out, "the cat", "--max-new-tokens", 2)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt"])
def test_a_pickle_is_refused(lorasmith, foreign, tmp_path, name):
    foreign.rename(tmp_path / name)
    answer = lorasmith("convert", tmp_path / name, "--alpha", 4, "--out", tmp_path / "out")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "pickle" in answer.err


def test_flags_of_projections_are_checked(lorasmith, foreign, tmp_path):
    answer = lorasmith("convert", foreign, "--alpha", 4, "--merged", "c_attn", "--out", tmp_path / "out")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "c_attn=1,0,1" in answer.err


def test_a_merged_layer_that_the_file_lacks_is_told_with_those_that_it_has(lorasmith, foreign, tmp_path):
    answer = lorasmith("convert", foreign, "--alpha", 4, "--merged", "qproj=1,0,1", "--out", tmp_path / "out")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    for part in (str(foreign), "named qproj", "Did you mean 'q_proj'?"):
        assert part in answer.err
