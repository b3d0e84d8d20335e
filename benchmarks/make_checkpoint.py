"""Write a random Llama-shaped checkpoint in several bf16 shards, holding one tensor at a time.

    python benchmarks/make_checkpoint.py FOLDER [--layers 22 --hidden 2048 --intermediate 5632 ...]

The default is the 1.1B shape: 22 layers, hidden 2048, intermediate 5632, 32 heads, 4 key-value heads, vocabulary 32000.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

# as TinyLlama's own weights are spread
DEVIATION = 0.02


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama model."""

    layers: int = 22
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 32
    kv_heads: int = 4
    vocabulary: int = 32000

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order of a Hugging Face checkpoint."""
        keys = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for name, rows in (("q", self.hidden), ("k", keys), ("v", keys), ("o", self.hidden)):
                yield f"{prefix}.self_attn.{name}_proj.weight", (rows, self.hidden)
            yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield f"{prefix}.input_layernorm.weight", (self.hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)


SHAPES = {"134m": Shape(12, 768, 2048, 12, 12, 32000), "1b": Shape(), "7b": Shape(32, 4096, 11008, 32, 32, 32000)}


def make_checkpoint(
    folder: Path, shape: Shape, shard_bytes: int = 500_000_000, seed: int = 0, device: str | torch.device = "cpu"
) -> None:
    """Write config.json, the shards and their index to folder; device draws the numbers, and decides which."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(seed)
    groups = _groups(shape, shard_bytes)
    index: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {key: _random(size, generator) for key, size in group}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))


def _groups(shape: Shape, shard_bytes: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, size in shape.tensors():
        count = 2 * torch.Size(size).numel()
        if groups[-1] and filled + count > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, size))
        filled += count
    return groups


def _random(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    drawn = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    return drawn.normal_(0, DEVIATION, generator=generator).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    arguments = vars(parser.parse_args())
    make_checkpoint(arguments.pop("folder"), Shape(**arguments))


if __name__ == "__main__":
    main()
