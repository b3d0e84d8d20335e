"""`lorasmith combine`: adapters on disk become one without their base."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from lorasmith.attach import attach, save_adapter
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.load import load


@pytest.fixture(scope="module")
def adapters(model_folder, tmp_path_factory):
    """Two adapters of ranks 2 and 3 on the tiny model; the first with a tokenizer."""
    folder = tmp_path_factory.mktemp("adapters")
    loaded = load(model_folder)
    for seed, (name, rank) in enumerate((("poems", 2), ("law", 3))):
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, base_model_name_or_path=str(model_folder))
        book = attach(loaded.model, config, name)
        torch.manual_seed(seed)
        for parameter in book.parameters(name):
            torch.nn.init.normal_(parameter, std=0.3)
        save_adapter(loaded.model, folder, name)
    loaded.tokenizer.save_pretrained(folder / "poems")
    return folder / "poems", folder / "law"


def product(folder, path="base_model.model.model.layers.0.self_attn.q_proj"):
    state = load_file(folder / "adapter_model.safetensors")
    return state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]


def test_side_by_side_the_sum_is_exact_and_said_to_be(lorasmith, adapters, tmp_path):
    out = tmp_path / "both"
    answer = lorasmith("combine", *adapters, "--weights", "0.7,-0.3", "--how", "cat", "--out", out)
    assert answer.code == 0, answer.err
    assert "distance from the exact weighted sum: 0.00 %" in answer.out
    assert "r: 5" in answer.out
    # alpha 8 over the ranks
    expected = 0.7 * 4 * product(adapters[0]) - 0.3 * 8 / 3 * product(adapters[1])
    assert_close(product(out), expected, atol=1e-5, rtol=0)
    assert (out / "tokenizer.json").is_file()


def test_what_a_lower_rank_loses_is_said(lorasmith, adapters, tmp_path):
    answer = lorasmith("combine", *adapters, "--rank", 1, "--out", tmp_path / "low")
    assert answer.code == 0, answer.err
    said = float(answer.out.split("weighted sum: ")[1].split(" %")[0])
    assert 10 < said < 100
    assert answer.out.startswith("0.5 x ")


def test_the_result_is_generated_with(lorasmith, adapters, model_folder, tmp_path):
    both = tmp_path / "both"
    lorasmith("combine", *adapters, "--how", "ties_svd", "--density", 0.5, "--out", both)
    answer = lorasmith("generate", model_folder, "the cat", "--adapter", both, "--max-new-tokens", 3)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weights", "0.7"], "2 adapters and 1 weights"),
        (["--weights", "a,b"], "numbers with commas"),
        (["--how", "linear"], "ranks 2, 3"),
        (["--how", "ties_svd"], "density is missing"),
        (["--how", "svg"], "Did you mean 'svd'"),
    ],
)
def test_what_cannot_be_combined_is_one_line_and_writes_nothing(lorasmith, adapters, tmp_path, arguments, said):
    answer = lorasmith("combine", *adapters, *arguments, "--out", tmp_path / "x")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert said in answer.err
    assert not (tmp_path / "x").exists()
