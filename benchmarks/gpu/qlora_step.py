"""A QLoRA step of the 8B shape, ours beside PEFT + bitsandbytes and Unsloth, in processes that take turns.

Rows of 2,048 tokens, rank 16 on all linear layers, checkpointing, bf16, AdamW, every token supervised. PEFT runs as its
documentation sets it up, which keeps norms, embeddings and head in f32, and with these left in bf16. A turn makes a new
optimizer, warms up for one step and times the others. Memory is what PyTorch's allocator held at most in a turn.
share_of_matmul counts the products that a step does: forward, forward again of the layers, and gradients of inputs,
none of weights, for these are frozen. share_of_model leaves out what checkpointing does again, as bench_step.py does.
The adapters' own products, half a percent, are in neither.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import random_llama
import torch
from adapted_models import peft_step
from bench_step import Size, flops_per_token
from contest import Contestant, Overrun, Turn, Worker, work
from measuring import Place, command_line, forget, peak, place_of, rates, tell, told
from random_llama import LLAMA_8B, TINY
from results import spread
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from training_runs import MadeUp, take_steps, tokens
from transformers import PreTrainedTokenizerFast

RANK, LENGTH, STEPS = 16, 2048, 3
ROWS = (4, 1)
OURS, PEFT, UNSLOTH = "ours", "PEFT + bitsandbytes", "Unsloth"
PEFT_BF16 = f"{PEFT}, bf16 kept"
# of a turn, the first of which makes the model
MOST_SECONDS = 45.0


def shape_of(request: dict[str, Any]) -> random_llama.Shape:
    return TINY if request["tiny"] else LLAMA_8B


def turns(build: Callable[[dict[str, Any]], Any], steps: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Any:
    """A contestant's load, that builds its model when it is first asked, since only then it knows where."""

    def load(_: Path) -> Turn:
        built: list[Any] = []

        def turn(request: dict[str, Any]) -> dict[str, Any]:
            if not built:
                built.append(build(request))
            with peak(torch.device(request["device"])) as memory:
                answer = steps(built[0], request)
            # what this process keeps for its next turn, others need for theirs
            forget()
            return {**answer, **memory}

        return turn

    return load


def made_up(request: dict[str, Any]) -> MadeUp:
    sizes = (request["rows"], request["length"], shape_of(request).vocabulary, STEPS)
    return MadeUp(*sizes, torch.device(request["device"]), request["seed"])


def our_model(request: dict[str, Any]) -> Any:
    return random_llama.adapted(random_llama.ours(shape_of(request), torch.device(request["device"])), RANK)


def our_steps(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    done = take_steps(model, made_up(request), gradient_checkpointing=True)
    return {"steps": done.seconds[1:], "losses": done.losses}


def peft_model(request: dict[str, Any]) -> Any:
    import peft

    base = random_llama.bitsandbytes(shape_of(request), torch.device(request["device"]))
    base = peft.prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": False})
    return _with_lora(base)


def lean_peft_model(request: dict[str, Any]) -> Any:
    """Without prepare_model_for_kbit_training, of which checkpointing is left."""
    base = random_llama.bitsandbytes(shape_of(request), torch.device(request["device"]))
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.enable_input_require_grads()
    return _with_lora(base)


def _with_lora(base: Any) -> Any:
    import peft

    torch.manual_seed(0)
    return peft.get_peft_model(base, peft.LoraConfig(**random_llama.lora(RANK))).train()


def plain_steps(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    device, vocabulary = torch.device(request["device"]), shape_of(request).vocabulary
    step = peft_step(model, torch.bfloat16)
    batches = made_up(request)
    losses = []
    for number in range(STEPS):
        batches.note()
        losses.append(step(tokens(request["seed"] + number, request["rows"], request["length"], vocabulary).to(device)))
    batches.note()
    return {"steps": batches.seconds()[1:], "losses": losses}


def unsloth_model(request: dict[str, Any]) -> Any:
    """Unsloth reads a folder with a tokenizer, so the base is saved for it as bitsandbytes stores it."""
    from unsloth import FastLanguageModel

    with tempfile.TemporaryDirectory() as folder:
        random_llama.bitsandbytes(shape_of(request), torch.device(request["device"])).save_pretrained(folder)
        words = Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>"))
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
        model, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=LENGTH, load_in_4bit=True)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    how = {"r": RANK, "lora_alpha": 2 * RANK, "use_gradient_checkpointing": "unsloth"}
    return FastLanguageModel.get_peft_model(model, target_modules=names, **how).train()


CONTESTANTS = {
    OURS: Contestant(turns(our_model, our_steps)),
    PEFT: Contestant(turns(peft_model, plain_steps)),
    PEFT_BF16: Contestant(turns(lean_peft_model, plain_steps)),
    UNSLOTH: Contestant(turns(unsloth_model, plain_steps)),
}
PEERS = ("peft", "bitsandbytes")
NEEDS: dict[str, tuple[str, ...]] = {OURS: (), PEFT: PEERS, PEFT_BF16: PEERS, UNSLOTH: ("unsloth",)}


def absent(name: str) -> list[str]:
    """Libraries that a contestant needs and that are not here."""
    return [library for library in NEEDS[name] if importlib.util.find_spec(library) is None]


def start(names: list[str]) -> dict[str, Worker]:
    """Their processes, which import libraries at the same time and touch no device; failures are told."""

    def started(name: str) -> Worker | str:
        try:
            return Worker(__file__, name, CONTESTANTS[name], Path(), 0.5)
        except SystemExit as error:
            return str(error)[-900:]

    with ThreadPoolExecutor(len(names)) as pool:
        found = dict(zip(names, pool.map(started, names), strict=True))
    for name, worker in found.items():
        if isinstance(worker, str):
            tell("step", way=name, error=worker)
    return {name: worker for name, worker in found.items() if isinstance(worker, Worker)}


def race(where: Place, rows: int, workers: dict[str, Worker], rate: float, rounds: int) -> None:
    """Turns in alternation while there is time for a round, then a row for each contestant; who fails drops out."""
    length = 32 if where.tiny else LENGTH
    name_of_race = f"step, {rows} x {length}"
    request = {"device": str(where.device), "tiny": where.tiny, "rows": rows, "length": length}
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    round_took = 0.0
    for seed in range(rounds):
        if where.left < 1.2 * round_took:
            break
        began = time.monotonic()
        for name in list(workers):
            try:
                taken[name].append(workers[name].turn({**request, "seed": 100 * seed}, MOST_SECONDS))
            except (Overrun, SystemExit, BrokenPipeError) as error:
                tell(name_of_race, way=name, error=f"{type(error).__name__}: {error}"[-900:])
                del workers[name]
        round_took = time.monotonic() - began
    size = Size(TINY if where.tiny else LLAMA_8B, rows, length, 1)
    for name, answers in taken.items():
        if answers:
            with told(name_of_race, way=name) as row:
                row |= summary(answers, size, rate)


def summary(answers: list[dict[str, Any]], size: Size, rate: float) -> dict[str, Any]:
    """One contestant's figures over its turns."""
    row = spread([second for answer in answers for second in answer["steps"]])
    row["tokens_per_second"] = size.rows * size.length / row["seconds"]
    row["share_of_matmul"] = done_flops_per_token(size) * row["tokens_per_second"] / rate
    row["share_of_model"] = flops_per_token(size) * row["tokens_per_second"] / rate
    row["first_loss"] = answers[0]["losses"][0]
    told_of = [key for key in ("allocated", "reserved") if key in answers[0]]
    return row | {key: max(answer[key] for answer in answers) for key in told_of}


def done_flops_per_token(size: Size) -> float:
    """flops_per_token and the layers' forward again: 2 a parameter but the head's, and of causal attention."""
    layers = sum(torch.Size(one).numel() for name, one in size.shape.tensors() if ".layers." in name)
    return flops_per_token(size) + 2 * layers + 2 * size.shape.layers * size.length * size.shape.hidden


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--worker", help="the contestant that this process is")
    parser.add_argument("--folder", type=Path, default=Path())
    arguments = parser.parse_args()
    if arguments.worker:
        work(CONTESTANTS[arguments.worker], arguments.folder)
        return
    workers = start([name for name in CONTESTANTS if not absent(name)])
    try:
        where = place_of(arguments)
        for name in CONTESTANTS:
            if missing := absent(name):
                tell("step", way=name, skipped=f"{' and '.join(missing)} not installed")
        rate = rates(where)["matmul_bfloat16"]
        forget()
        for rows in ROWS[-1:] if where.tiny else ROWS:
            race(where, rows, workers, rate, rounds=1 if where.tiny else 3)
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
