"""Which names mean what in the families of transformers' models; facts only, keyed by config.model_type.

The default targets are PEFT's (peft 0.21, utils/constants.py), so that a config without target_modules adapts the
same modules here as there.
"""

# what LoraConfig() without target_modules adapts
LORA_TARGETS: dict[str, list[str] | str] = {
    **{key: ["q", "v"] for key in ("t5", "mt5")},
    **{
        key: ["q_proj", "v_proj"]
        for key in ("bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral", "stablelm")
    },
    **{key: ["q_proj", "v_proj"] for key in ("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")},
    **{key: ["query", "value"] for key in ("bert", "roberta", "xlm-roberta", "electra", "layoutlm")},
    **{key: ["query_key_value"] for key in ("bloom", "gpt_neox", "chatglm", "RefinedWebModel", "RefinedWeb", "falcon")},
    **{key: ["c_attn"] for key in ("gpt2", "gpt_bigcode")},
    "blip-2": ["q", "v", "q_proj", "v_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "deberta": ["in_proj"],
    "mpt": ["Wqkv"],
    "btlm": ["c_proj", "c_attn"],
    "codegen": ["qkv_proj"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "rwkv": ["key", "value", "receptance", "output"],
    "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
}

# what VeraConfig() and AdaLoraConfig() without target_modules adapt
VERA_TARGETS: dict[str, list[str] | str] = LORA_TARGETS | {"phi": ["q_proj", "v_proj"]}
ADALORA_TARGETS: dict[str, list[str] | str] = {
    **{key: ["q_proj", "v_proj"] for key in ("gptj", "gpt_neo", "llama", "llama4")},
    **{key: ["q_proj", "v_proj"] for key in ("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")},
    **{key: ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"] for key in ("bart", "opt")},
    **{key: ["c_attn"] for key in ("gpt2", "gpt_bigcode")},
    **{key: ["query_key_value"] for key in ("bloom", "gpt_neox")},
    "t5": ["q", "k", "v", "o", "wi", "wo"],
    "mt5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
    "bert": ["query", "value"],
    "roberta": ["query", "key", "value", "dense"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
    "deberta": ["in_proj"],
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
}

# what IA3Config() without target_modules rescales
IA3_TARGETS: dict[str, list[str]] = {
    **{key: ["k_proj", "v_proj", "down_proj"] for key in ("llama", "mistral")},
    **{
        key: ["q_proj", "v_proj", "down_proj"] for key in ("llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")
    },
    **{key: ["query_key_value", "dense_4h_to_h"] for key in ("gpt_neox", "RefinedWebModel", "RefinedWeb", "falcon")},
    **{key: ["key", "value", "output.dense"] for key in ("bert", "roberta")},
    **{key: ["c_attn", "mlp.c_proj"] for key in ("gpt2", "gpt_bigcode")},
    "t5": ["k", "v", "wo"],
    "mt5": ["k", "v", "wi_1"],
    "bloom": ["query_key_value", "mlp.dense_4h_to_h"],
    "opt": ["q_proj", "k_proj", "fc2"],
    "gptj": ["q_proj", "v_proj", "fc_out"],
    "gpt_neo": ["q_proj", "v_proj", "c_proj"],
    "bart": ["q_proj", "v_proj", "fc2"],
    "mixtral": ["k_proj", "v_proj", "w2"],
    "deberta-v2": ["key_proj", "value_proj", "output.dense"],
    "deberta": ["in_proj", "output.dense"],
    "phi": ["q_proj", "v_proj", "fc2"],
}

# which of them are rescaled at the input (feed-forward) instead of the output
IA3_FEEDFORWARD: dict[str, list[str]] = {
    **{
        key: ["down_proj"] for key in ("llama", "llama4", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")
    },
    **{key: ["dense_4h_to_h"] for key in ("gpt_neox", "RefinedWebModel", "RefinedWeb", "falcon")},
    **{key: ["output.dense"] for key in ("bert", "roberta", "deberta", "deberta-v2")},
    **{key: ["mlp.c_proj"] for key in ("gpt2", "gpt_bigcode")},
    **{key: ["fc2"] for key in ("opt", "bart", "phi")},
    "t5": ["wo"],
    "mt5": [],
    "bloom": ["mlp.dense_4h_to_h"],
    "gptj": ["fc_out"],
    "gpt_neo": ["c_proj"],
    "mixtral": ["w2"],
}

# the projections that end the attention and the feed-forward half of a block: where a bottleneck adapter is placed
BLOCK_ENDS: dict[str, list[str]] = {
    **{
        key: ["o_proj", "down_proj"]
        for key in ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "stablelm")
    },
    **{key: ["output.dense"] for key in ("bert", "roberta", "xlm-roberta", "electra")},
    **{key: ["attn.c_proj", "mlp.c_proj"] for key in ("gpt2", "gpt_bigcode")},
    **{key: ["out_proj", "fc2"] for key in ("opt", "bart")},
    **{key: ["dense", "dense_4h_to_h"] for key in ("gpt_neox", "bloom", "falcon")},
    **{key: ["o", "wo"] for key in ("t5", "mt5")},
    "gptj": ["out_proj", "fc_out"],
    "gpt_neo": ["out_proj", "c_proj"],
    "phi": ["dense", "fc2"],
    "mixtral": ["o_proj"],
    "deberta-v2": ["output.dense"],
    "distilbert": ["out_lin", "lin2"],
}

# the projection that ends the feed-forward half alone
FEEDFORWARD_ENDS: dict[str, list[str] | str] = {
    **{
        key: ["down_proj"]
        for key in ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "stablelm")
    },
    # attention has an output.dense too, one step deeper
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "deberta-v2"), r".*\.\d+\.output\.dense"),
    **{key: ["mlp.c_proj"] for key in ("gpt2", "gpt_bigcode", "gpt_neo")},
    **{key: ["fc2"] for key in ("opt", "bart", "phi")},
    **{key: ["dense_4h_to_h"] for key in ("gpt_neox", "bloom", "falcon")},
    **{key: ["wo"] for key in ("t5", "mt5")},
    "gptj": ["fc_out"],
    "distilbert": ["lin2"],
}

# the module that is the whole feed-forward half, where a family has one
FEEDFORWARD_BLOCKS: dict[str, list[str]] = {
    **{
        key: ["mlp"]
        for key in ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "stablelm", "phi")
    },
    **{key: ["mlp"] for key in ("gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "bloom", "falcon")},
    **{key: ["DenseReluDense"] for key in ("t5", "mt5")},
    "distilbert": ["ffn"],
}

# what LNTuningConfig() without target_modules trains
LN_TARGETS: dict[str, list[str]] = {
    **{key: ["input_layernorm", "post_attention_layernorm", "norm"] for key in ("llama", "mistral", "gemma")},
    **{
        key: [
            *("input_layernorm", "post_attention_layernorm", "norm"),
            *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        ]
        for key in ("gemma2", "gemma3_text")
    },
    **{key: ["input_layernorm", "post_attention_layernorm", "ln_f"] for key in ("bloom", "falcon")},
    **{key: ["layer_norm", "final_layer_norm"] for key in ("t5", "mt5")},
    **{key: ["post_attention_layernorm"] for key in ("qwen2", "qwen3")},
    "bart": ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "blip-2": ["layernorm", "LayerNorm", "final_layer_norm", "self_attn_layer_norm"],
    "gptj": ["ln_1", "ln_f"],
    "phi": ["input_layernorm", "final_layernorm"],
    "llava": [
        *("input_layernorm", "post_attention_layernorm", "norm"),
        *("multi_modal_projector", "embed_tokens", "lm_head"),
    ],
}

# what attention is called in the families, and in the names of its classes; the other linear layers of a block are its
# feed-forward, but for these, which mix tokens without attention
ATTENTION_WORDS = ("attn", "attention")
MIXER_WORDS = ("mixer", "mamba", "ssm", "rwkv", "recurrent", "conv")

# last name of the linear layers that choose experts: tiny, and quantizing them changes which expert answers
ROUTERS = frozenset({"gate", "router", "shared_expert_gate", "router_proj"})

# names of task heads at the top of a model
HEADS = frozenset({"lm_head", "embed_out", "score", "classifier", "qa_outputs", "cls", "classification_head"})
