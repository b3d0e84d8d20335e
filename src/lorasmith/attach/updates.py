"""LoRA adapters as updates of modules, each b a with a bias, and the adapter that holds given ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorasmith.attach.adapters import KEY_PREFIX
from lorasmith.attach.content import AdapterContent
from lorasmith.methods.layer import Kind
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.lora.factors import Factors

# LoRA's fields that the tensors and the scaling carry, or that say where an adapter came from and what it is for
CARRIED_FIELDS = frozenset(
    {
        *("task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "fan_in_fan_out"),
        *("loftq_config", "eva_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    }
)


@dataclass(frozen=True)
class Update:
    """LoRA's update of one module: scaling b a with a [rank, in, ...], b [out, rank, ...], and scaling bias [out]."""

    a: Tensor
    b: Tensor
    bias: Tensor | None
    scaling: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def grouped(self) -> bool:
        """Whether it stands beside a convolution in groups, where b a is no sum of products."""
        return self.b.shape[1] != self.rank

    def factors(self, weight: float = 1.0) -> Factors:
        """weight scaling b a as two matrices in f32; a kernel's places are columns."""
        return Factors(self.a.float().flatten(1) * (weight * self.scaling), self.b.float().flatten(1))


def matrix_of(change: Tensor, kind: Kind) -> Tensor:
    """The change of a weight [out, in, ...], or of an embedding [rows, width], as the matrix that b a is."""
    return change.T.contiguous() if kind == "embedding" else change.flatten(1)


def update_of(factors: Factors, shape: torch.Size, kind: Kind) -> Update:
    """The update b a, of scaling 1, of a weight of this shape; a convolution's kernel lies behind a's channels."""
    a, b = factors
    if kind == "conv":
        a, b = a.reshape(a.shape[0], *shape[1:]), b.reshape(*b.shape, *(1 for _ in shape[2:]))
    return Update(a, b, None, 1.0, kind == "embedding")


def written(like: LoraConfig, updates: Mapping[str, Update], names: list[str], **changes: Any) -> AdapterContent:
    """An adapter of these updates, each of scaling 1, its config but for changes like another; it targets names."""
    biased = any(update.bias is not None for update in updates.values())
    state: dict[str, Tensor] = {}
    for path, update in updates.items():
        slots = ("lora_embedding_A", "lora_embedding_B") if update.embedding else ("lora_A.weight", "lora_B.weight")
        state |= {f"{KEY_PREFIX}{path}.{slots[0]}": update.a, f"{KEY_PREFIX}{path}.{slots[1]}": update.b}
        if biased and not update.embedding:
            bias = update.b.new_zeros(update.b.shape[0]) if update.bias is None else update.bias
            state[f"{KEY_PREFIX}{path}.lora_B.bias"] = bias
    # alpha equal to the rank makes every scaling 1
    ranks = {path: update.rank for path, update in updates.items()}
    rank, pattern = rank_pattern(ranks)
    config = replace(
        like,
        r=rank,
        rank_pattern=pattern,
        lora_alpha=rank,
        alpha_pattern=dict(pattern),
        use_rslora=False,
        init_lora_weights=True,
        lora_bias=biased,
        target_modules=names,
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        **changes,
    )
    return AdapterContent(config, state)


def rank_pattern(ranks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The largest of the ranks by module, and the pattern that gives the others theirs.

    A pattern means a path and whatever ends in it, so longer paths come first, and where one that has the largest rank
    ends in a shorter one it gets an entry too.
    """
    largest = max(ranks.values())
    chosen = {path for path, rank in ranks.items() if rank != largest}
    chosen |= {path for path in ranks if any(path.endswith(f".{other}") for other in chosen)} if chosen else set()
    return largest, {path: ranks[path] for path in sorted(chosen, key=len, reverse=True)}


def cast(update: Update, dtype: torch.dtype) -> Update:
    """The update in another type."""
    bias = None if update.bias is None else update.bias.to(dtype)
    return replace(update, a=update.a.to(dtype), b=update.b.to(dtype), bias=bias)
