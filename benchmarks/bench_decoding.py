"""Generating with a KV cache: ours beside PEFT + bitsandbytes and PEFT on a dense base, on one random checkpoint.

    python benchmarks/bench_decoding.py [--rounds 7] [--new 32] [--only TEXT] [--accept-noise] [--folder FOLDER]

Every contestant lives in a process of its own and takes turns with the others (contest.py): a prompt of 32 tokens, then
greedy tokens one by one, the prompt's pass included in the time. Rank 8 on all linear layers, active, not merged. The
limit is the machine's rate of reading memory: share_of_limit is the weights' bytes that a token needs (all parameters
but the embedding's table; bitsandbytes' scales, which are none, are left out) times tokens a second, over that rate.
Where one contestant's weights fit into the last cache the share can exceed one. Writes results/decoding.json.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapted_models
import torch
from contest import Contest, Contestant, Turn, command_line, work
from limits import limits
from make_checkpoint import SHAPES, make_checkpoint
from quiet import machine
from results import peers, save, table

SHAPE = SHAPES["134m"]
PROMPT = 32


def generating(model: Any) -> Turn:
    read = sum(one.nbytes for name, one in model.named_parameters() if "embed_tokens" not in name)

    @torch.no_grad()
    def turn(request: list[int]) -> dict[str, Any]:
        seed, new, vocabulary = request
        ids = torch.randint(vocabulary, (1, PROMPT), generator=torch.Generator().manual_seed(seed))
        lengths = {"max_new_tokens": new, "min_new_tokens": new}
        mask = torch.ones_like(ids)
        made = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths)
        assert made.shape[1] == PROMPT + new
        return {"weight_bytes": read}

    return turn


def ours(folder: Path) -> Turn:
    import lorasmith

    base = lorasmith.load(folder, scheme=lorasmith.Scheme("nf4"), device="cpu").model
    return generating(lorasmith.get_peft_model(base, lorasmith.LoraConfig(**adapted_models.CONFIG)).eval())


def pefts(dtype: torch.dtype, *, quantized: bool = True) -> Callable[[Path], Turn]:
    # without prepare_model_for_kbit_training, which widens the head to f32 for training's sake
    def load(folder: Path) -> Turn:
        import peft

        base = adapted_models.peers_base(folder, dtype, quantized=quantized)
        return generating(peft.get_peft_model(base, peft.LoraConfig(**adapted_models.CONFIG)).eval())

    return load


CONTESTANTS = {
    "ours, NF4 + DQ": Contestant(ours),
    "PEFT + bitsandbytes, bf16": Contestant(pefts(torch.bfloat16)),
    "PEFT + bitsandbytes, f32": Contestant(pefts(torch.float32)),
    "PEFT, bf16 base": Contestant(pefts(torch.bfloat16, quantized=False)),
    "PEFT, f32 base": Contestant(pefts(torch.float32, quantized=False)),
}


def main() -> None:
    parser = command_line(__doc__, rounds=7)
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    chosen = parser.parse_args()
    if chosen.worker:
        work(CONTESTANTS[chosen.worker], chosen.folder)
        return
    with tempfile.TemporaryDirectory(prefix="lorasmith-decoding-") as temporary:
        folder = chosen.folder or Path(temporary)
        if not (folder / "config.json").exists():
            make_checkpoint(folder, SHAPE)
        request = lambda number: [number, chosen.new, SHAPE.vocabulary]  # noqa: E731
        guarded = not chosen.accept_noise
        contest = Contest(__file__, CONTESTANTS, folder, request, chosen.rounds, chosen.most_seconds, guarded)
        found = limits()
        rows = contest.race([name for name in CONTESTANTS if any(text in name for text in chosen.only)])
    for row in rows:
        row["tokens_per_second"] = chosen.new / row["seconds"]
        # a contestant that was ended has told nothing
        read = row["first"]["weight_bytes"] if row["first"] else 0
        row["share_of_limit"] = row["tokens_per_second"] * read / found["read"]
    about = {**machine(), **peers(), "prompt": PROMPT, "new": chosen.new, "limits": found, "guarded": guarded}
    save("decoding", about, rows, chosen.results)
    columns = {"tokens/s": "tokens_per_second", "of limit": "share_of_limit"}
    print(table(f"{PROMPT} tokens read, {chosen.new} generated, 134m", about, rows, columns), flush=True)


if __name__ == "__main__":
    main()
