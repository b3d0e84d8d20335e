"""Tiny models of several families, made from a config and saved as a user would have them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
BERT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 90,
    "max_position_embeddings": 40,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 90, "bos_token_id": 0, "eos_token_id": 0}
MIXTRAL = {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}

BUILDERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**MIXTRAL)),
    "bert": lambda: BertModel(BertConfig(**BERT)),
    "classifier": lambda: BertForSequenceClassification(BertConfig(**BERT)),
}


@pytest.fixture
def saved(tmp_path):
    """saved(kind, dtype) -> the folder of a tiny model with random weights, in shards of 100 kB."""

    def save(kind, dtype=torch.float32, folder="model"):
        torch.manual_seed(0)
        model = BUILDERS[kind]().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                # biases and norms are constant at first, where a lost one would not show
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        model.save_pretrained(tmp_path / folder, max_shard_size="100KB")
        return tmp_path / folder

    return save


@pytest.fixture
def edit_tensors():
    """edit_tensors(folder, change): change(dict of tensors) is applied to a folder of one shard or several."""

    def edit(folder, change):
        tensors = {}
        for path in folder.glob("*.safetensors"):
            tensors |= load_file(path)
            path.unlink()
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


@pytest.fixture
def edit_config():
    """edit_config(folder, **fields): set fields of config.json."""

    def edit(folder, **fields):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit
