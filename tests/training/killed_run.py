"""A tiny run that can kill itself at a named moment: python killed_run.py FOLDER MOMENT."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorasmith.data.example import Example
from lorasmith.data.loader import Loader
from lorasmith.models.packed_attention import enable_packing
from lorasmith.training import RunFolder, TrainingSettings, checkpoint, loss_for, run
from lorasmith.training.optimizers import Optimizer

SETTINGS = TrainingSettings(
    max_steps=8,
    batch_size=3,
    accumulation=2,
    learning_rate=1e-2,
    schedule="cosine",
    warmup=2,
    weight_decay=0.01,
    dtype="fp32",
    save_every=2,
    evaluate_every=3,
    log_every=1,
    keep_checkpoints=2,
)


class LowRank(nn.Module):
    """A frozen linear layer with a trained low-rank path under dropout."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(0.2)
        self.a = nn.Parameter(torch.randn(4, base.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(base.out_features, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.dropout(x) @ self.a.T @ self.b.T


def build_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=80,
        attention_dropout=0.1,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj = LowRank(layer.self_attn.q_proj)
        layer.mlp.down_proj = LowRank(layer.mlp.down_proj)
    return model


def build_loader() -> Loader:
    generator = torch.Generator().manual_seed(1)
    examples = []
    for length in torch.randint(4, 20, (15,), generator=generator).tolist():
        tokens = torch.randint(0, 80, (length,), generator=generator).tolist()
        examples.append(Example(tokens, [-100, -100, *tokens[2:]]))
    # 5 micro-batches an epoch: the run crosses epochs in the middle of a step
    return Loader(examples, 3, seed=7, packing=False, max_length=32, padding_free=True, pad_token_id=0)


def train(folder: Path, resume: bool, settings: TrainingSettings = SETTINGS) -> dict[str, Tensor]:
    """Train, and return the final trained tensors."""
    model = build_model()
    assert enable_packing(model) is None
    loader, loss = build_loader(), loss_for(model, "causal")

    def evaluate() -> dict[str, float]:
        batches = list(loader.one_pass())
        return {"loss": sum(loss(batch).item() for batch in batches) / sum(batch.supervised for batch in batches)}

    run(model, loader, settings, RunFolder(folder), loss=loss, evaluate=evaluate, resume=resume)
    return {name: parameter.detach().clone() for name, parameter in checkpoint.trainable_parameters(model).items()}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle_of_step_5() -> None:
    move, calls = Optimizer.move, [0]

    def counted(self: Optimizer, *arguments: object) -> None:
        calls[0] += 1
        if calls[0] == 4 * len(self.parameters) + 3:
            die()
        move(self, *arguments)

    Optimizer.move = counted


def die_between_temporary_file_and_rename() -> None:
    replace = os.replace

    def deadly(source: Path, target: Path) -> None:
        if Path(target).name == "step-000006":
            assert (Path(source) / "state.json").exists()
            die()
        replace(source, target)

    os.replace = deadly


def die_during_the_second_checkpoint() -> None:
    save_file, calls = checkpoint.save_file, [0]

    def deadly(tensors: dict[str, Tensor], path: Path) -> None:
        save_file(tensors, path)
        calls[0] += 1
        # three files a checkpoint: the second one's optimizer state, half of it
        if calls[0] == 5:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
            die()

    checkpoint.save_file = deadly


MOMENTS = {
    "step": die_in_the_middle_of_step_5,
    "rename": die_between_temporary_file_and_rename,
    "second": die_during_the_second_checkpoint,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    MOMENTS[sys.argv[2]]()
    train(Path(sys.argv[1]), resume=False)
