"""What is compared with the real PEFT: by method (its name in the registry), a line a case.

A case is (shape, fields of the config). A method that PEFT has too and that has no case here fails a test. The first
case of a method on a shape is run over an NF4 base as well.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tiny import IDS, bert, gpt2, gpt_oss, llama, mixtral, qwen_moe, t5, vit


@dataclass(frozen=True)
class Shape:
    """A model with random weights and what it is asked; task is what PEFT's users would write for it.

    storages are those that make a difference: a model without linear layers has none to quantize.
    """

    build: Callable[[], nn.Module]
    task: str | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    storages: tuple[str, ...] = ("dense", "nf4")


class Conv(nn.Module):
    """Convolutions of each dimension in a row; input_ids stand for pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, 16)
        self.conv1 = nn.Conv1d(16, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 4, 3, padding=1, stride=2)
        self.conv3 = nn.Conv3d(4, 2, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, input_ids):
        x = self.conv1(self.embed(input_ids).transpose(1, 2))
        return self.conv3(self.conv2(x[:, None])[:, :, None])


# two sentences, the second of which is padded from its fifth token on
TEXT = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

SHAPES = {
    "llama": Shape(llama, "CAUSAL_LM", TEXT),
    "gpt2": Shape(gpt2, "CAUSAL_LM", TEXT),
    "bert": Shape(bert, "SEQ_CLS", TEXT),
    "t5": Shape(t5, "SEQ_2_SEQ_LM", TEXT | {"decoder_input_ids": IDS.flip(1)[:, :4]}),
    "vit": Shape(vit, None, {"pixel_values": PICTURES}),
    "mixtral": Shape(mixtral, "CAUSAL_LM", TEXT),
    "qwen_moe": Shape(qwen_moe, "CAUSAL_LM", TEXT, ("dense",)),
    "gpt_oss": Shape(gpt_oss, "CAUSAL_LM", TEXT, ("dense",)),
    "tied": Shape(lambda: llama(tie_word_embeddings=True), "CAUSAL_LM", TEXT),
    "conv": Shape(Conv, None, {"input_ids": IDS}, ("dense",)),
}

VIT = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
LSTM = {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 20}

CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "lora": [
        ("llama", {}),
        ("llama", {"r": 4, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj"]}),
        ("llama", {"target_modules": "all-linear", "use_rslora": True}),
        ("llama", {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 5}}),
        ("llama", {"target_modules": "all-linear", "alpha_pattern": {"v_proj": 3}}),
        ("llama", {"target_modules": r".*layers\.0.*(q|o)_proj"}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
        ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"], "r": 3}),
        ("llama", {"target_modules": ["q_proj"], "bias": "all"}),
        ("llama", {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
        ("llama", {"target_modules": ["q_proj", "o_proj"], "lora_bias": True}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"init_lora_weights": "gaussian"}),
        ("llama", {"init_lora_weights": "orthogonal"}),
        ("llama", {"init_lora_weights": "pissa", "target_modules": "all-linear", "r": 4}),
        # PEFT's OLoRA takes GPT-2's layers the wrong way round, and makes factors that fit no layer
        ("llama", {"init_lora_weights": "olora"}),
        ("gpt2", {"init_lora_weights": "pissa", "fan_in_fan_out": True, "r": 4}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("bert", {"target_modules": "all-linear"}),
        ("t5", {}),
        ("t5", {"target_modules": "all-linear"}),
        ("vit", VIT),
        ("conv", {"target_modules": ["conv1", "conv2", "conv3"], "r": 2, "lora_alpha": 5}),
        ("llama", {"use_dora": True, "target_modules": "all-linear", "r": 4, "lora_alpha": 6}),
        ("llama", {"use_dora": True, "init_lora_weights": False}),
        ("llama", {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"], "r": 3}),
        ("gpt2", {"use_dora": True, "fan_in_fan_out": True, "use_rslora": True}),
        ("conv", {"use_dora": True, "target_modules": ["conv1", "conv2", "conv3"], "r": 2, "lora_alpha": 5}),
        ("mixtral", EXPERTS | {"r": 4}),
        ("mixtral", EXPERTS | {"rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {"experts.down_proj": 3}}),
        ("mixtral", {"target_modules": [], "target_parameters": ["mlp.gate.weight"]}),
        ("qwen_moe", {"target_parameters": ["mlp.experts.down_proj"], "r": 3}),
        ("gpt_oss", EXPERTS),
        ("llama", {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
        ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": [17, 3, 5]}),
        ("tied", {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}}),
        ("llama", {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [9]}}),
        ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ],
    "ia3": [
        ("llama", {}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("bert", {}),
        ("t5", {}),
        ("vit", VIT | {"feedforward_modules": []}),
        ("conv", {"target_modules": ["conv2", "conv3"], "feedforward_modules": ["conv2"]}),
    ],
    "trainable_tokens": [
        ("llama", {"token_indices": [17, 3, 5]}),
        ("tied", {"token_indices": [17, 3, 5]}),
        ("gpt2", {"token_indices": [60, 11]}),
    ],
    "loha": [
        ("llama", {"r": 2, "alpha": 3, "target_modules": "all-linear"}),
        ("llama", {"target_modules": ["q_proj", "down_proj"]}),
        ("llama", {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}, "init_weights": False}),
        ("bert", {"r": 2}),
        ("vit", VIT | {"r": 2}),
        ("conv", {"r": 2, "target_modules": ["conv1", "conv2"]}),
        ("conv", {"r": 2, "target_modules": ["conv1", "conv2"], "use_effective_conv2d": True}),
    ],
    "lokr": [
        ("llama", {"r": 2, "alpha": 3, "target_modules": "all-linear"}),
        ("llama", {"target_modules": ["q_proj", "down_proj"]}),
        ("llama", {"r": 1, "decompose_both": True, "decompose_factor": 4, "rank_pattern": {"v_proj": 2}}),
        ("llama", {"r": 2, "init_weights": "lycoris", "decompose_factor": 5}),
        ("llama", {"r": 2, "init_weights": False}),
        ("bert", {"r": 2}),
        ("t5", {"r": 2}),
        ("conv", {"target_modules": ["conv1", "conv2"]}),
        ("conv", {"r": 1, "target_modules": ["conv1", "conv2"]}),
        # PEFT's own Kronecker product fails on a Conv1d here
        ("conv", {"r": 1, "target_modules": ["conv2"], "use_effective_conv2d": True}),
    ],
    "vera": [
        ("llama", {"r": 6, "target_modules": "all-linear"}),
        ("llama", {"r": 40, "save_projection": False, "projection_prng_key": 3}),
        ("llama", {"r": 6, "bias": "vera_only", "target_modules": ["q_proj", "v_proj"]}),
        ("gpt2", {"r": 6, "fan_in_fan_out": True}),
        ("bert", {"r": 6, "d_initial": 0.3}),
        ("t5", {"r": 6}),
    ],
    "adalora": [
        ("llama", {"total_step": 10, "init_r": 3, "lora_alpha": 5}),
        ("llama", {"total_step": 10, "bias": "lora_only", "init_lora_weights": False}),
        ("gpt2", {"total_step": 10, "fan_in_fan_out": True}),
        ("bert", {"total_step": 10}),
        ("t5", {"total_step": 10}),
        ("conv", {"total_step": 10, "target_modules": ["conv2"], "init_r": 2}),
    ],
    "boft": [
        ("llama", {}),
        ("llama", {"boft_block_size": 0, "boft_block_num": 4, "target_modules": "all-linear", "bias": "boft_only"}),
        ("llama", {"boft_block_size": 8, "init_weights": False}),
        ("bert", {}),
        ("conv", {"target_modules": ["conv2"], "boft_block_size": 3}),
    ],
    "oft": [
        ("llama", {"oft_block_size": 8, "target_modules": "all-linear"}),
        ("llama", {"oft_block_size": 0, "r": 4, "use_cayley_neumann": False}),
        ("llama", {"oft_block_size": 8, "block_share": True}),
        ("llama", {"oft_block_size": 8, "coft": True, "eps": 0.2}),
        ("llama", {"oft_block_size": 8, "num_cayley_neumann_terms": 3}),
        ("llama", {"oft_block_size": 8, "num_cayley_neumann_terms": 7, "bias": "all"}),
        ("llama", {"oft_block_size": 8, "init_weights": False}),
        ("llama", {"oft_block_size": 8, "target_modules": ["embed_tokens"]}),
        ("bert", {"oft_block_size": 8}),
        ("t5", {"oft_block_size": 8}),
    ],
    "prompt_tuning": [
        ("llama", {"num_virtual_tokens": 4}),
        ("gpt2", {"num_virtual_tokens": 4}),
        ("bert", {"num_virtual_tokens": 4}),
        ("t5", {"num_virtual_tokens": 4}),
        ("t5", {"num_virtual_tokens": 4, "num_transformer_submodules": 1}),
    ],
    "p_tuning": [
        ("llama", {"num_virtual_tokens": 4, "encoder_hidden_size": 24}),
        ("llama", {"num_virtual_tokens": 4} | LSTM),
        ("gpt2", {"num_virtual_tokens": 4}),
        ("bert", {"num_virtual_tokens": 4} | LSTM | {"encoder_num_layers": 1}),
        ("t5", {"num_virtual_tokens": 4, "encoder_dropout": 0.5}),
    ],
    "ln_tuning": [
        ("llama", {}),
        ("gpt2", {}),
        ("bert", {"target_modules": ["LayerNorm"]}),
        ("t5", {}),
    ],
    "shira": [
        ("llama", {"r": 2}),
        ("llama", {"r": 3, "random_seed": 5, "target_modules": "all-linear", "init_weights": False}),
        ("bert", {"r": 2}),
        ("t5", {"r": 2}),
    ],
    "prefix_tuning": [
        ("llama", {"num_virtual_tokens": 4}),
        ("llama", {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 24}),
        ("gpt2", {"num_virtual_tokens": 4, "prefix_projection": True}),
        ("bert", {"num_virtual_tokens": 4}),
        ("t5", {"num_virtual_tokens": 4}),
        ("t5", {"num_virtual_tokens": 4, "prefix_projection": True}),
    ],
}


@dataclass(frozen=True)
class Case:
    """One comparison, on a base that is stored dense or in NF4."""

    method: str
    shape: str
    fields: dict[str, Any]
    storage: str

    @property
    def name(self) -> str:
        told = ", ".join(f"{key}={value}" for key, value in self.fields.items())
        return f"{self.method} on {self.shape} in {self.storage} ({told})"

    def config(self, config_class: Callable[..., Any]) -> Any:
        """A config with the case's fields."""
        task = {"task_type": SHAPES[self.shape].task}
        return config_class(**(task | self.fields))

    def scores(self, model: nn.Module) -> Tensor:
        """What the model says of its real tokens: PEFT returns the logits of a soft prompt before them too."""
        inputs = SHAPES[self.shape].inputs
        with torch.no_grad():
            output = model(**inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        asked = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        return logits[:, -asked.shape[1] :] if asked is not None and logits.dim() == 3 else logits


def _storages(method: str, number: int) -> tuple[str, ...]:
    """Dense for every case; the others for the first of a method on a shape, since a storage knows no fields."""
    shape = CASES[method][number][0]
    first = all(earlier != shape for earlier, _ in CASES[method][:number])
    return SHAPES[shape].storages if first else ("dense",)


ALL = [
    Case(method, shape, fields, storage)
    for method, cases in CASES.items()
    for number, (shape, fields) in enumerate(cases)
    for storage in _storages(method, number)
]
