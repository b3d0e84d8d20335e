"""What is wrong with a model folder is found from its headers, and said with the file and the fix."""

import json

import pytest
import torch

from lorasmith.errors import ModelError
from lorasmith.models.checkpoint import open_checkpoint
from lorasmith.models.hub import Source, fetch


def refused(folder, pattern, **keywords):
    with pytest.raises(ModelError, match=pattern) as caught:
        open_checkpoint(folder, **keywords)
    assert "\n" not in str(caught.value)


def test_a_sharded_folder_opens_with_all_its_tensors(saved):
    folder = saved("llama")
    assert len(list(folder.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(folder)
    assert "model.layers.1.mlp.down_proj.weight" in checkpoint.tensors
    assert checkpoint.dtype == torch.float32


def test_the_type_is_that_of_most_weights_where_the_config_names_none(saved, edit_config):
    folder = saved("llama", torch.bfloat16)
    edit_config(folder, dtype=None)
    assert open_checkpoint(folder).dtype == torch.bfloat16


def test_a_missing_folder_is_refused_with_the_fix(tmp_path):
    with pytest.raises(ModelError, match="nowhere does not exist; check the path, or give a hub name"):
        fetch(Source(tmp_path / "nowhere"))


def test_a_file_instead_of_a_folder_is_refused(saved):
    with pytest.raises(ModelError, match="is a file; give the folder"):
        fetch(Source(saved("bert") / "config.json"))


def test_a_hub_name_that_is_not_in_the_cache_is_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="offline was asked for"):
        fetch(Source("nobody/nothing", offline=True))


def test_a_folder_without_a_config_is_refused(tmp_path):
    refused(tmp_path, "has no config.json")


def test_an_adapter_is_refused_with_its_base_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base/model"}))
    refused(tmp_path, "is an adapter, not a model; load its base first .it names base/model")


def test_a_config_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config.json cannot be read as JSON")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_a_pickle_file_is_refused_by_name(saved, name):
    folder = saved("bert")
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    (folder / name).write_bytes(b"\x80\x04.")
    refused(folder, f"{name} is a pickle file.*safetensors only")


def test_a_folder_without_weights_is_refused(saved):
    folder = saved("bert")
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    refused(folder, "has no weights")


def test_a_missing_shard_is_refused_by_name(saved):
    folder = saved("llama")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    refused(folder, f"lists shards that are not there: {shard.name}")


def test_a_truncated_shard_is_refused_by_name(saved):
    folder = saved("llama")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(folder, f"{shard.name} is truncated")


def test_code_in_the_folder_is_refused_unless_allowed(saved, edit_config):
    folder = saved("llama")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    refused(folder, r"modeling_own.py.*trust_remote_code=True \(--trust-remote-code\)")
    open_checkpoint(folder, trust_remote_code=True)


def test_a_config_that_points_to_code_is_refused_unless_allowed(saved, edit_config):
    folder = saved("llama")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    refused(folder, "auto_map in config.json")


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "fp8", "compressed-tensors", "quanto"])
def test_a_foreign_quantization_is_refused_by_name(saved, edit_config, method):
    folder = saved("llama")
    edit_config(folder, quantization_config={"quant_method": method, "bits": 4})
    refused(folder, f"stored in {method.upper()}, which lorasmith does not read; use the 16-bit model")


def test_a_foreign_quantization_of_the_text_part_is_refused_too(saved, edit_config):
    folder = saved("llama")
    edit_config(folder, text_config={"quantization_config": {"quant_method": "awq"}})
    refused(folder, "stored in AWQ")


def test_foreign_weights_are_refused_also_where_the_config_hides_them(saved, edit_tensors):
    folder = saved("llama")
    edit_tensors(folder, lambda tensors: tensors.update({"model.x.qweight": torch.zeros(4, dtype=torch.int32)}))
    refused(folder, "model.x.qweight is stored in GPTQ or AWQ")


def test_fp8_weights_are_refused(saved, edit_tensors):
    folder = saved("llama")
    edit_tensors(folder, lambda tensors: tensors.update({"x.weight": torch.zeros(4).to(torch.float8_e4m3fn)}))
    refused(folder, "x.weight is stored in FP8")
