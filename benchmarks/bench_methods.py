"""Every method beside LoRA on two real tasks: what it trains, what it costs, what it reaches.

    python benchmarks/bench_methods.py [--tasks reviews tales] [--only TEXT] [--seeds 3] [--search] [--costs] [--write]

reviews: minilm-l6-v2 (22.7 million parameters) learns to tell IMDb's reviews by their last 32 words, 512 of them in 128
steps; accuracy on 300 others. tales: tinystories-656k learns Grimm's first nine tenths in 200 steps of 16 x 128
tokens; loss a token on windows of the last tenth. Each through `lorasmith.train`, in f32, with warm-up and cosine.
With --search, learning rates are compared on 150 further reviews, by loss, with a seed of their own; the rates of
method_contestants.py come from there.
Means over seeds and 95 % intervals of the mean (Student's t); the intervals of one run's own sample are in the results.
With --costs a step of novels-8m on 16 x 128 tokens is timed beside LoRA's, every method in a process of its own
(contest.py), five at a time.
Writes results/methods.json, run by run, and goes on from there; --write puts the table into docs/methods.md.
Needs the shared folder of models and texts (LORASMITH_SHARED).
"""

import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import peft
import torch
from adapted_models import our_step, packed
from contest import Contest, Contestant, Turn, command_line, work
from method_contestants import LORA, METHODS, Method
from quiet import machine
from results import FOLDER
from shared import SHARED, absence
from torch import nn

import lorasmith
from lorasmith.atomic import write_text
from lorasmith.attach import adapters_of, attach
from lorasmith.data.batch import Batch
from lorasmith.methods import methods
from lorasmith.models.fused_block import fuse_blocks_
from lorasmith.models.packed_attention import enable_packing
from lorasmith.recipes.method_section import method_config, resolve_method

RESULTS = FOLDER / "methods.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- table: python benchmarks/bench_methods.py --write -->\n", "<!-- end of the table -->\n"
TASKS = ("reviews", "tales")
MODELS = {"reviews": "minilm-l6-v2", "tales": "tinystories-656k", "costs": "novels-8m"}
KINDS = {"reviews": "classification", "tales": "causal", "costs": "causal"}
REVIEWS, HELD_REVIEWS, SEARCH_REVIEWS, WORDS, STEPS = 512, 300, 150, 32, 200
# rates to search among, and the seed of the search's runs
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEARCH_SEED = 7
BATCHES = {"reviews": 4, "tales": 16, "costs": 16}
LENGTHS = {"reviews": 48, "tales": 128, "costs": 128}
# the 97.5 % point of Student's t with n - 1 degrees of freedom
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def reviews(part: str, first: int, count: int) -> list[dict[str, Any]]:
    """The ends of count reviews of a file, from line first on."""
    # not splitlines: a review may hold other line separators
    lines = (SHARED / "imdb" / f"{part}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    # the files are sorted by label in places: every n-th line is a fair sample
    chosen = map(json.loads, lines[first :: len(lines) // count][:count])
    return [{**review, "text": " ".join(review["text"].split()[-WORDS:])} for review in chosen]


def tales(tokenizer: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Windows of 128 tokens as texts: of the first nine tenths of Grimm, and 128 of the last."""
    length = LENGTHS["tales"]
    text = (SHARED / "text" / "grimms_fairy_tales.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    both = []
    for part in (text[:cut], text[cut:]):
        ids = tokenizer(part, add_special_tokens=False).input_ids
        windows = [ids[start : start + length - 1] for start in range(0, len(ids) - length, length - 1)]
        both.append([{"text": tokenizer.decode(window)} for window in windows])
    return both[0], both[1][:128]


def load(task: str, seed: int) -> Any:
    options = {"num_labels": 2} if KINDS[task] == "classification" else {}
    path = SHARED / "models" / MODELS[task]
    return lorasmith.load(path, task=KINDS[task], dtype=torch.float32, seed=seed, **options)


def section_of(method: Method, task: str) -> dict[str, Any]:
    """The method section, the rank set so that as many parameters train as in the contestant that it shares."""
    if method.share is None:
        return method.section
    wanted = trained(METHODS[method.share].section, task)
    unit = trained({**method.section, "r": 1}, task)
    return {**method.section, "r": max(1, round(wanted / unit))}


def trained(section: dict[str, Any], task: str) -> int:
    """Parameters of the adapter, without a classifier's head."""
    model = load(task, 0).model
    book = attach(model, method_config(resolve_method(section), KINDS[task], ""))
    heads = {id(p) for _, saved in book.saved_modules() for p in saved.parameters()}
    return sum(p.numel() for p in book.parameters("default") if id(p) not in heads)


def examples(task: str, tokenizer: Any, searching: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a run learns and what is held out; for a search of rates, reviews that no other run sees."""
    if task == "tales":
        return tales(tokenizer)
    held = reviews("train", 1, SEARCH_REVIEWS) if searching else reviews("test", 0, HELD_REVIEWS)
    return reviews("train", 0, REVIEWS), held


def score(name: str, task: str, seed: int, rate: float, searching: bool = False) -> dict[str, Any]:
    """One run's score on what was held out."""
    method, loaded = METHODS[name], load(task, seed)
    train, held = examples(task, loaded.tokenizer, searching)
    section = section_of(method, task)
    length = {"epochs": 1.0} if task == "reviews" else {"max_steps": STEPS, "packing": False}
    with tempfile.TemporaryDirectory() as folder:
        run = lorasmith.train(
            loaded.model,
            loaded.tokenizer,
            train,
            validation=held,
            output=Path(folder) / "run",
            task=KINDS[task],
            method=section,
            max_length=LENGTHS[task],
            batch_size=BATCHES[task],
            learning_rate=rate,
            warmup=0.06,
            seed=seed,
            dtype="fp32",
            samples=0,
            save_every=None,
            echo=lambda line: None,
            **length,
            **method.training,
        )
        summary = json.loads((run.folder / "summary.json").read_text())
    assert run.after is not None
    metric = "accuracy" if task == "reviews" and not searching else "loss"
    rank = {"rank": section["r"]} if method.share else {}
    return {"trainable": summary["trainable_parameters"], **rank, **run.after[metric]}


def measure(name: str, task: str, seed: int) -> None:
    who = {"contestant": name, "task": task, "seed": seed}
    rate = METHODS[name].rates[TASKS.index(task)]
    if rate is None or any(who.items() <= row.items() for row in known()["rows"]):
        return
    row = {**who, "rate": rate, **score(name, task, seed, rate)}
    print(f"{name}, {task}, seed {seed}: {row['value']:.4f}", flush=True)
    found = known()
    keep({**found, "rows": [*found["rows"], row]})


def search(name: str) -> None:
    """Runs on the reviews at the method's rate and at its neighbours, until the best has worse ones on both sides."""
    first = METHODS[name].rates[TASKS.index("reviews")]
    if first is None:
        return
    losses: dict[int, float] = {}
    best = wanted = RATES.index(first)
    while wanted is not None:
        losses[wanted] = searched(name, RATES[wanted])
        best = min(losses, key=losses.__getitem__)
        around = (near for near in (best + 1, best - 1) if 0 <= near < len(RATES) and near not in losses)
        wanted = next(around, None)
    print(f"{name}: {RATES[best]:g}", flush=True)


def searched(name: str, rate: float) -> float:
    """The loss of a run at a rate, on the reviews kept for the search."""
    who = {"contestant": name, "rate": rate}
    for row in known()["searches"]:
        if who.items() <= row.items():
            return row["value"]
    loss = score(name, "reviews", SEARCH_SEED, rate, searching=True)["value"]
    print(f"{name} at {rate:g}: {loss:.4f}", flush=True)
    keep({**known(), "searches": [*known()["searches"], {**who, "value": loss}]})
    return loss


def known() -> dict[str, Any]:
    nothing: dict[str, Any] = {"rows": [], "costs": [], "searches": []}
    return {**nothing, **json.loads(RESULTS.read_text())} if RESULTS.is_file() else nothing


def keep(found: dict[str, Any]) -> None:
    versions = {"torch": torch.__version__, "lorasmith": lorasmith.__version__}
    write_text(RESULTS, json.dumps({"versions": versions, **found}, indent=1) + "\n")


# --- what a step costs


def step_of(name: str) -> Callable[[Path], Turn]:
    """A step on novels-8m, in packed rows where the method can have them, as its recipe would train."""

    def start(folder: Path) -> Turn:
        model = load("costs", 0).model
        section = resolve_method(section_of(METHODS[name], "costs"))
        attach(model, method_config(section, "causal", ""))
        fuse_blocks_(model)
        packs = methods[section["name"]].packs and enable_packing(model) is None
        step = our_step(model.train(), None)
        count = itertools.count(2)

        def turn(seed: int) -> dict[str, Any]:
            rows = torch.randint(
                4096, (BATCHES["costs"], LENGTHS["costs"]), generator=torch.Generator().manual_seed(seed)
            )
            whole = Batch(rows, rows, torch.ones_like(rows), None, None, rows.numel() - BATCHES["costs"])
            return {"loss": step(next(count), [packed(rows) if packs else whole], 1e-4).loss}

        return turn

    return start


def costs(chosen: Any, names: list[str]) -> None:
    contestants = {name: Contestant(step_of(name)) for name in METHODS}
    if chosen.worker:
        work(contestants[chosen.worker], chosen.folder)
        return
    guarded = not chosen.accept_noise
    contest = Contest(
        __file__, contestants, Path(), lambda number: number, chosen.rounds, chosen.most_seconds, guarded, at_once=6
    )
    # the language model that is timed has no biases
    timed = [name for name in names if name != LORA and METHODS[name].rates[TASKS.index("tales")] is not None]
    for group in (timed[start : start + 5] for start in range(0, len(timed), 5)):
        rows = contest.race([LORA, *group])
        base = next(row for row in rows if row["name"] == LORA)
        # of this race: other versions may have timed the others
        rows = [{**row, "peak_ratio": row["peak"] / base["peak"]} for row in rows]
        others = [row for row in known()["costs"] if row["name"] not in (LORA, *group)]
        keep({**known(), "machine": {**machine(), "guarded": guarded}, "costs": [*rows, *others]})


# --- the table


def mergeable(model: nn.Module) -> bool:
    book = adapters_of(model)
    prompt = book.prompted is not None
    return not prompt and all(site.refuses_merge() is None for _, site in book.sites("default"))


def table(found: dict[str, Any]) -> str:
    """The results as markdown; what was not run shows as a dash."""
    heads = (
        "method",
        "trainable (tales)",
        "step time",
        "peak memory",
        "accuracy, reviews",
        "loss, tales",
        "merges",
        "PEFT's files",
    )
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    cost = {row["name"]: row for row in found["costs"]}
    shared_types = {kind.value for kind in peft.PeftType}
    for name, method in METHODS.items():
        rows = [row for row in found["rows"] if row["contestant"] == name]
        if not rows:
            continue
        task = "reviews" if method.rates[TASKS.index("tales")] is None else "tales"
        model = load(task, 0).model
        config = method_config(resolve_method(section_of(method, task)), KINDS[task], "")
        attach(model, config)
        counts = [row["trainable"] for row in rows if row["task"] == "tales"]
        ratios = ["-", "-"]
        if name in cost:
            ratios = [f"{cost[name]['ratio']:.2f}x", f"{cost[name]['peak_ratio']:.2f}x"]
        scores = [mean_of([row["value"] for row in rows if row["task"] == task], task) for task in TASKS]
        merges = "yes" if mergeable(model) else "no"
        files = "yes" if config.METHOD in shared_types else "no"
        count = f"{counts[0]:,}" if counts else "-"
        lines.append(f"| {' | '.join([name, count, *ratios, *scores, merges, files])} |")
    return "\n".join(lines) + "\n"


def mean_of(values: list[float], task: str) -> str:
    if not values:
        return "-"
    digits = 1 if task == "reviews" else 3
    scale, unit = (100, " %") if task == "reviews" else (1, "")
    mean = statistics.mean(values) * scale
    if len(values) == 1:
        return f"{mean:.{digits}f}{unit} (1 seed)"
    half = STUDENT[len(values)] * statistics.stdev(values) / sqrt(len(values)) * scale
    return f"{mean:.{digits}f} ± {half:.{digits}f}{unit}"


def main() -> None:
    parser = command_line(__doc__, rounds=5)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search", action="store_true", help="search for the methods' learning rates on the reviews")
    parser.add_argument("--costs", action="store_true", help="time a step of each method too")
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    parser.add_argument("--no-runs", action="store_true", help="train nothing; only costs or the table")
    chosen = parser.parse_args()
    if reason := absence():
        parser.exit(2, f"error: {reason}\n")
    names = [name for name in METHODS if any(text in name for text in chosen.only)]
    if chosen.worker or chosen.costs:
        costs(chosen, names)
        if chosen.worker:
            return
    if chosen.search:
        for name in names:
            search(name)
    elif not chosen.no_runs:
        for seed, task, name in itertools.product(range(chosen.seeds), chosen.tasks, names):
            measure(name, task, seed)
    text = table(known())
    print(text)
    if chosen.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        write_text(PAGE, head + BEGIN + "\n" + text + "\n" + rest[rest.index(END) :])


if __name__ == "__main__":
    main()
