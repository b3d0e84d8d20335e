"""Many adapters on one base: a batch whose rows have adapters of their own, and adapters that train at once.

    python benchmarks/bench_adapters.py [--rounds 3] [--only TEXT] [--accept-noise] [--folder FOLDER]

Every contestant lives in a process of its own and takes turns with the others (contest.py), on one random checkpoint
of a 26m shape in NF4 with double quantization (PEFT's also on the dense base) and on the same adapters, ranks 4 to 16
on all linear layers. Serving: 32 rows over 16 adapters in the order in which they would arrive, a prompt of 16
tokens each and greedy tokens one by one; beside PEFT's mixed batch and beside a batch of its own for each adapter.
PEFT computes in f32: in bf16 a processor without instructions for it takes minutes. Training: 8 adapters of different
ranks and learning rates, each on 2 rows of 64 tokens a step; beside 8 runs one after another with the base loaded once,
whose time is summed and whose peak is that of one. Results hold the greatest difference: of the prompt's logits, and of
the last losses. Writes results/adapters_serving.json and results/adapters_training.json.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import adapted_models
import torch
from contest import Contest, Contestant, Turn, command_line, work
from make_checkpoint import Shape, make_checkpoint
from quiet import machine
from results import peers, save, table

# a turn takes seconds; 16 adapters of rank 8 are a quarter of it
SHAPE = Shape(layers=6, hidden=512, intermediate=1408, heads=8, kv_heads=4, vocabulary=8000)
SERVED, ROWS, PROMPT, NEW = 16, 32, 16, 8
TRAINED, LENGTH, ROWS_EACH, STEPS = 8, 64, 2, 2
RANKS = (4, 8, 16, 8)
ADAPTERS = "adapters"

# row k has adapter k % 16: no two rows of one adapter stand together
NAMES = [f"adapter{row % SERVED}" for row in range(ROWS)]


def config(number: int) -> dict[str, Any]:
    rank = RANKS[number % len(RANKS)]
    return adapted_models.CONFIG | {"r": rank, "lora_alpha": 2 * rank}


def write_adapters(folder: Path) -> None:
    """SERVED adapters that change the model, in files that both libraries read."""
    import lorasmith
    from lorasmith.attach import adapters_of, attach, save_adapter

    model = lorasmith.load(folder, scheme=lorasmith.Scheme("nf4"), device="cpu").model
    for number in range(SERVED):
        torch.manual_seed(number)
        attach(model, lorasmith.LoraConfig(**config(number), init_lora_weights=False), f"adapter{number}")
        for parameter in adapters_of(model).parameters(f"adapter{number}"):
            torch.nn.init.normal_(parameter, std=0.02)
        save_adapter(model, folder / ADAPTERS, f"adapter{number}")


# --- serving


def our_server(folder: Path) -> Any:
    import lorasmith

    base = lorasmith.load(folder, scheme=lorasmith.Scheme("nf4"), device="cpu").model
    return _with_adapters(lorasmith.PeftModel, base, folder)


def peft_server(folder: Path, dtype: torch.dtype, *, quantized: bool) -> Any:
    import peft

    return _with_adapters(peft.PeftModel, adapted_models.peers_base(folder, dtype, quantized=quantized), folder)


def _with_adapters(kind: Any, base: Any, folder: Path) -> Any:
    path = folder / ADAPTERS
    model = kind.from_pretrained(base, path / "adapter0", adapter_name="adapter0")
    for number in range(1, SERVED):
        model.load_adapter(path / f"adapter{number}", adapter_name=f"adapter{number}")
    return model.eval()


def prompts(seed: int) -> torch.Tensor:
    return torch.randint(SHAPE.vocabulary, (ROWS, PROMPT), generator=torch.Generator().manual_seed(seed))


def mixed(model: Any) -> Turn:
    """One batch, a name for each row."""

    @torch.no_grad()
    def turn(seed: int) -> dict[str, Any]:
        _generate(model, prompts(seed), adapter_names=NAMES)
        return {}

    return _told(turn, lambda ids: model(input_ids=ids, adapter_names=NAMES).logits)


def one_by_one(model: Any) -> Turn:
    """A batch of its own for each adapter."""
    rows = {name: [row for row, other in enumerate(NAMES) if other == name] for name in dict.fromkeys(NAMES)}

    @torch.no_grad()
    def turn(seed: int) -> dict[str, Any]:
        ids = prompts(seed)
        for name, own in rows.items():
            model.set_adapter(name)
            _generate(model, ids[own])
        return {}

    def logits(ids: torch.Tensor) -> torch.Tensor:
        found: dict[int, torch.Tensor] = {}
        for name, own in rows.items():
            model.set_adapter(name)
            found |= dict(zip(own, model(input_ids=ids[own]).logits, strict=True))
        return torch.stack([found[row] for row in range(ROWS)])

    return _told(turn, logits)


def _generate(model: Any, ids: torch.Tensor, **more: Any) -> None:
    lengths = {"max_new_tokens": NEW, "min_new_tokens": NEW}
    mask = torch.ones_like(ids)
    made = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths, **more)
    assert made.shape[1] == PROMPT + NEW


def _told(turn: Turn, logits: Callable[[torch.Tensor], torch.Tensor]) -> Turn:
    """turn, which also tells some logits of the first prompt's rows when it warms up."""

    def told(seed: int) -> dict[str, Any]:
        if seed:
            return turn(seed)
        with torch.no_grad():
            return turn(seed) | {"values": logits(prompts(0))[:, -1, :64].float().tolist()}

    return told


SERVING = {
    "ours, one batch": Contestant(lambda folder: mixed(our_server(folder))),
    "ours, 16 batches": Contestant(lambda folder: one_by_one(our_server(folder))),
    "PEFT + bitsandbytes, f32, one batch": Contestant(
        lambda folder: mixed(peft_server(folder, torch.float32, quantized=True))
    ),
    "PEFT, f32 base, one batch": Contestant(lambda folder: mixed(peft_server(folder, torch.float32, quantized=False))),
}


# --- training


class Stream:
    """The same packed rows of random tokens for one adapter, in every contestant."""

    def __init__(self, number: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(1000 * seed + number)

    def __iter__(self) -> Any:
        while True:
            tokens_BT = torch.randint(SHAPE.vocabulary, (ROWS_EACH, LENGTH), generator=self.generator)
            yield adapted_models.packed(tokens_BT)

    def epoch_batches(self) -> int:
        return STEPS

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        return


def training(folder: Path, *, together: bool) -> Turn:
    """Every turn attaches fresh adapters to the base, trains them, and takes them off again."""
    import lorasmith
    from lorasmith.attach import adapters_of, attach
    from lorasmith.models.fused_block import fuse_blocks_
    from lorasmith.models.packed_attention import enable_packing
    from lorasmith.training import Job, RunFolder, TrainingSettings, run, train_together

    base = lorasmith.load(folder, scheme=lorasmith.Scheme("nf4"), device="cpu").model
    fuse_blocks_(base)
    assert enable_packing(base) is None

    def prepared(number: int, seed: int, runs: str) -> Job:
        torch.manual_seed(number)
        attach(base, lorasmith.LoraConfig(**config(number)), f"adapter{number}")
        rate = 1e-4 * (1 + number)
        settings = TrainingSettings(max_steps=STEPS, learning_rate=rate, save_every=None, schedule="constant")
        return Job(f"adapter{number}", Stream(number, seed), settings, RunFolder(Path(runs) / str(number)))

    def turn(seed: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="lorasmith-adapters-") as runs:
            if together:
                results = train_together(base, [prepared(number, seed, runs) for number in range(TRAINED)])
                losses = [results[f"adapter{number}"].loss for number in range(TRAINED)]
            else:
                losses = []
                for number in range(TRAINED):
                    job = prepared(number, seed, runs)
                    losses.append(run(base, job.loader, job.settings, job.folder).loss)
        for name in list(adapters_of(base).configs):
            adapters_of(base).remove(name)
        return {"values": losses}

    return turn


TRAINING = {
    "ours, 8 at once": Contestant(lambda folder: training(folder, together=True)),
    "ours, 8 runs": Contestant(lambda folder: training(folder, together=False)),
}


def main() -> None:
    parser = command_line(__doc__, rounds=3)
    chosen = parser.parse_args()
    if chosen.worker:
        work((SERVING | TRAINING)[chosen.worker], chosen.folder)
        return
    with tempfile.TemporaryDirectory(prefix="lorasmith-adapters-") as temporary:
        folder = chosen.folder or Path(temporary)
        if not (folder / "config.json").exists():
            make_checkpoint(folder, SHAPE)
        if not (folder / ADAPTERS).exists():
            write_adapters(folder)
        serving = {"served": SERVED, "batch": ROWS, "prompt": PROMPT, "new": NEW}
        race("serving", SERVING, folder, chosen, serving)
        race("training", TRAINING, folder, chosen, {"trained": TRAINED, "tokens": ROWS_EACH * LENGTH, "steps": STEPS})


def race(what: str, contestants: Mapping[str, Contestant], folder: Path, chosen: Any, sizes: Mapping[str, int]) -> None:
    """One of the two contests, saved and printed."""
    guarded = not chosen.accept_noise
    contest = Contest(__file__, contestants, folder, lambda number: number, chosen.rounds, chosen.most_seconds, guarded)
    names = [name for name in contestants if any(text in name for text in chosen.only)]
    if not names:
        return
    rows = contest.race(names)
    # the logits and losses themselves are not kept
    told = {row["name"]: torch.tensor(row["first"].pop("values")) for row in rows if row["first"]}
    for row in rows:
        row["greatest_difference"] = _difference(told, row["name"], names[0])
    about = {**machine(), **peers(), **sizes, "guarded": guarded}
    save(f"adapters_{what}", about, rows, chosen.results)
    print(table(f"{what}, 26m", about, rows, {}), flush=True)
    for row in rows:
        print(f"greatest difference of {row['name']}: {row['greatest_difference']}", flush=True)


def _difference(told: Mapping[str, torch.Tensor], name: str, other: str) -> float | None:
    # a contestant that was ended has told nothing
    return float((told[name] - told[other]).abs().max()) if {name, other} <= told.keys() else None


if __name__ == "__main__":
    main()
