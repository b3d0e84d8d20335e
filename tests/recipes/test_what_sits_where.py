"""The dry run and `inspect` show layers, kinds and sizes of every method."""

import pytest

from lorasmith.attach import attach, save_adapter
from lorasmith.methods import methods
from lorasmith.recipes.dry_run import module_lines
from lorasmith.recipes.inspection import inspection_lines
from methods.test_methods import FIELDS
from tiny import llama

# what stands in the dry run's first line besides the count, and in inspect's lines
SHOWN = {
    "bitfit": ("q_proj 32 bias in place", "model.layers.(0-1).self_attn.q_proj: bias 32"),
    "bottleneck": (
        "o_proj 32 x 32 bottleneck of 16 behind it, scaling 1",
        "o_proj: adapter_down.bias 16, adapter_down.weight 16 x 32, adapter_up.bias 32, adapter_up.weight 32 x 16",
    ),
    "full": ("model.embed_tokens 64 x 32 weight in place", "model.layers.(0-1).mlp.down_proj: weight 32 x 48"),
    "ia3": ("k_proj 16 x 32 IA3 on the output", "model.layers.(0-1).self_attn.k_proj: ia3_l 16 x 1"),
    "ln_tuning": (
        "input_layernorm 32 weight in place",
        "layers.(0-1).input_layernorm: ln_tuning_layers.weight 32",
    ),
    "lora": ("q_proj 32 x 32 LoRA, rank 8, scaling 1", "q_proj: lora_A.weight 8 x 32, lora_B.weight 32 x 8"),
    "p_tuning": ("input 3 x 32 3 virtual tokens through an LSTM", "prompt_embeddings: 3 x 32"),
    "prefix_tuning": (
        "every attention layer 3 x 64 keys and values of 3 virtual tokens through an MLP",
        "prompt_embeddings: 3 x 64",
    ),
    "prompt_tuning": ("input 3 x 32 3 virtual tokens", "prompt_embeddings: 3 x 32"),
    "shira": ("q_proj 32 x 32 SHiRA, 128 random entries", "q_proj: shira_indices 2 x 128, shira_weight 128"),
}


def adapted(method):
    model = llama()
    attach(model, methods[method].config_class(task_type="CAUSAL_LM", **FIELDS.get(method, {})))
    return model


@pytest.mark.parametrize("method", methods.names())
def test_the_dry_run_counts_every_trained_parameter_once_at_its_place(method):
    model = adapted(method)
    *lines, total = module_lines(model)
    counts = [int(line.split()[-2].replace(",", "")) for line in lines]
    assert sum(counts) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert total.startswith(f"{len(lines)} modules; {sum(counts):,} of")


@pytest.mark.parametrize("method", SHOWN)
def test_the_dry_run_shows_place_size_and_kind(method):
    first = " ".join(next(iter(module_lines(adapted(method)))).split())
    assert SHOWN[method][0] in first


@pytest.mark.parametrize("method", methods.names())
def test_inspect_shows_every_tensor_by_place_and_shape(method, tmp_path):
    save_adapter(adapted(method), tmp_path)
    lines = list(inspection_lines(str(tmp_path)))
    assert method.upper() in lines[0]
    if method in SHOWN:
        assert any(SHOWN[method][1] in line for line in lines), "\n".join(lines)
