"""Trains the base model that the quickstart embeds, and writes it to src/lorasmith/quickstart/base.

    python scripts/train_quickstart_base.py [--steps 2000] [--threads 2]

A Llama of 1.3 million parameters on the made-up world's corpus, which holds facts and stories, and of answered
questions only who or what is meant. Words that follow from the world or the story weigh ten times those that chance
decided: unweighted, the model spent its first two million tokens on the latter. Matrices of the layers train with Muon,
the rest with AdamW. The same seed and number of threads on the same machine give the same weights.
"""

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorasmith.atomic import atomic_folder
from lorasmith.quickstart.corpus import documents, pieces, plain
from lorasmith.quickstart.world import World, cast, make_world, outing

BASE = Path(__file__).resolve().parents[1] / "src" / "lorasmith" / "quickstart" / "base"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
BOS, EOS, PAD = range(3)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ message['content'] + '\nAnswer:' }}{% endif %}{% endfor %}"
)
TOKENIZER_DOCUMENTS, TOKENIZER_SEED, CORPUS_SEED, MODEL_SEED = 5000, 1, 7, 0
PROBE_SEED = 99
LENGTH, BATCH, CONTEXT = 64, 32, 512
CHANCE_WEIGHT = 0.1
MUON_RATE, ADAM_RATE, WARMUP, DECAY_SHARE = 0.02, 4e-3, 50, 0.3


def train_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer on the corpus; nearly every word of the world is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [plain(text) for text in itertools.islice(documents(world, TOKENIZER_SEED), TOKENIZER_DOCUMENTS)]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIALS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # the frame of questions is in the corpus too; repeated, its words become single tokens
    tokenizer.train_from_iterator(texts + ["\nQuestion: \nAnswer:"] * 50, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, model_max_length=CONTEXT, **SPECIALS
    )


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """An untrained model with the given number of tokens in its vocabulary."""
    torch.manual_seed(MODEL_SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
        # the CPU's fused attention is slower than this in the backward pass at such lengths
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def windows(world: World, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[list[int], list[float]]]:
    """Endless windows of LENGTH tokens of the corpus, and what each token weighs in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    for document in documents(world, CORPUS_SEED):
        parts = [([BOS], False)]
        for text, known in pieces(document):
            parts.append((tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, known))
        for tokens, known in [*parts, ([EOS], False)]:
            ids += tokens
            weights += [1.0 if known else CHANCE_WEIGHT] * len(tokens)
        while len(ids) >= LENGTH:
            yield ids[:LENGTH], weights[:LENGTH]
            del ids[:LENGTH], weights[:LENGTH]


def weighted_loss(model: nn.Module, ids_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Mean loss of the predicted tokens under their weights."""
    with torch.autocast("cpu", torch.bfloat16):
        logits_BTV = model(input_ids=ids_BT).logits
    predicted = logits_BTV[:, :-1].flatten(0, 1).float()
    losses = nn.functional.cross_entropy(predicted, ids_BT[:, 1:].flatten(), reduction="none")
    weights = weights_BT[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, head and norms."""
    named = list(model.named_parameters())
    matrices = [parameter for name, parameter in named if ".layers." in name and parameter.ndim == 2]
    others = [parameter for name, parameter in named if not (".layers." in name and parameter.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAM_RATE, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def train(model: LlamaForCausalLM, world: World, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Train model in place: constant rate after the warm-up, falling to zero at the end."""
    stream, chosen = windows(world, tokenizer), optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in chosen]
    began = time.perf_counter()
    for step in range(1, steps + 1):
        factor = min(1.0, step / WARMUP, (1 - (step - 1) / steps) / DECAY_SHARE)
        batch = list(itertools.islice(stream, BATCH))
        loss = weighted_loss(model, torch.tensor([ids for ids, _ in batch]), torch.tensor([w for _, w in batch]))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(chosen, peaks):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - began
            print(
                f"step {step}: loss {loss.item():.3f}, {seconds:.0f} s, {probes(model, world, tokenizer)}", flush=True
            )


def probes(model: LlamaForCausalLM, world: World, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the base knows: shares of statements that it completes rightly, in the corpus' own words."""
    rng = random.Random(PROBE_SEED)
    facts = [(f"The colour of the {one.name} is", one.colour) for one in world.things]
    facts += [(f"The {one.name} was made in", one.town) for one in world.things]
    facts += [(f"{one.name} was born in", one.town) for one in world.people]
    meant, inferred = [], []
    for _ in range(100):
        people, things = cast(world.people, 2, rng), cast(world.things, 2, rng)
        story, person, thing = outing(people, things, rng), people[0], things[0]
        meant += [(f"{story} The {thing.kind} is the", thing.name), (f"{story} The {person.job} is", person.name)]
        inferred += [(f"{story} The colour of the {thing.kind} is", thing.colour)]
        inferred += [(f"{story} The {person.job} was born in", person.town)]
    groups = {"facts": facts, "who or what is meant": meant, "facts about those": inferred}
    return ", ".join(f"{name} {completed(model, tokenizer, pairs):.3f}" for name, pairs in groups.items())


@torch.no_grad()
def completed(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> float:
    """Share of prompts whose likeliest next token is the word that follows."""
    tokens = tokenizer([prompt for prompt, _ in pairs], return_tensors="pt", padding=True, padding_side="right")
    last = tokens.attention_mask.sum(1) - 1
    likeliest = model(**tokens).logits[torch.arange(len(pairs)), last].argmax(-1)
    said = [tokenizer.decode(token).strip() for token in likeliest]
    return sum(word == wanted for word, (_, wanted) in zip(said, pairs)) / len(pairs)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bf16 and its tokenizer as a Hugging Face folder, whole or not at all."""
    model.config._attn_implementation = "sdpa"
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    with atomic_folder(folder, replace=True) as temporary:
        model.to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def main() -> None:
    """Trains the base and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=BASE)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    world = make_world()
    tokenizer = train_tokenizer(world)
    model = make_model(len(tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)
    train(model, world, tokenizer, given.steps)
    save(model, tokenizer, given.out)
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
