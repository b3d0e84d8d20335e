"""The figures of the table: which row of which result is ours, which rows are the peer's, and what was aimed at."""

from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 2**30


@dataclass(frozen=True)
class Goal:
    """ratio: of the peer's best to ours, at least; share: of the limit, at least; most: of ours."""

    text: str = ""
    ratio: float | None = None
    share: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Figure:
    """One line of the table. The first of peers is its default; where names the other fields of its rows.

    name may hold fields of the result in braces.
    """

    name: str
    result: str
    ours: str
    peers: tuple[str, ...] = ()
    goal: Goal = Goal()
    key: str = "seconds"
    where: Mapping[str, object] = field(default_factory=dict)


OURS, CHECKPOINTED = "ours, NF4 + DQ", "ours, NF4 + DQ, checkpointing"
RETURNED = f"{CHECKPOINTED}, freed memory returned"
DOCUMENTED = "PEFT + bitsandbytes, bf16 (as documented)"
F32, F32_KEPT = "PEFT + bitsandbytes, f32", "PEFT + bitsandbytes, f32, freed blocks kept"
BF16, BF16_KEPT = "PEFT + bitsandbytes, bf16", "PEFT + bitsandbytes, bf16, freed blocks kept"
STEP_PEERS = (DOCUMENTED, BF16, BF16_KEPT, F32, F32_KEPT)
CHECKPOINTED_PEERS = (DOCUMENTED, "PEFT + bitsandbytes, f32, checkpointing")
PLAIN_PEERS = ("PEFT, bf16 base", "PEFT, f32 base")
DENSE = ("dense layer alone, bf16", "dense layer alone, f32")
LOADERS = ("transformers + bitsandbytes, bf16", "transformers + bitsandbytes, f32")
INSTRUCTIONS = "instructions_novels-8m"
PADDED = tuple(
    f"Trainer, {how}"
    for how in ("bf16, 8 x 2 (as documented)", "f32, 8 x 2", "f32, 8 x 2, freed blocks kept", "f32, 4 x 4")
)
BY_LENGTH = tuple(f"Trainer, f32, by length, {how}" for how in ("8 x 2", "4 x 4", "4 x 4, blocks kept"))

STEPS = (
    Figure("step, 134m", "step_134m", OURS, STEP_PEERS, Goal("2x", ratio=2)),
    Figure("peak of a step, 134m", "step_134m", OURS, STEP_PEERS, Goal("half the peak", ratio=2), "peak"),
    Figure("step, 134m, beside plain LoRA", "step_134m", OURS, PLAIN_PEERS, Goal("1.3x", ratio=1.3)),
    Figure("step, 134m, checkpointing", "step_134m", CHECKPOINTED, CHECKPOINTED_PEERS),
    Figure(
        "step, 1.1b", "step_1b", OURS, STEP_PEERS, Goal("1.4x at 75 % of the matrix product", ratio=1.4, share=0.75)
    ),
    Figure("peak of a step, 1.1b", "step_1b", OURS, STEP_PEERS, Goal("0.7 of the peak", ratio=1 / 0.7), "peak"),
    Figure("step, 1.1b, beside checkpointing", "step_1b", OURS, CHECKPOINTED_PEERS, Goal("2x", ratio=2)),
    Figure(
        "peak of a step, 1.1b, beside checkpointing",
        "step_1b",
        OURS,
        CHECKPOINTED_PEERS,
        Goal("no more", ratio=1),
        "peak",
    ),
    Figure("step, 1.1b, checkpointing, freed memory returned", "step_1b", RETURNED, CHECKPOINTED_PEERS),
    Figure("peak of the same", "step_1b", RETURNED, CHECKPOINTED_PEERS, key="peak"),
    Figure(
        "peak of a 7b step, checkpointing, freed memory returned",
        "step_7b",
        RETURNED,
        (),
        Goal("under 5.5 GiB", most=5.5 * GIB),
        "peak",
    ),
)
OTHERS = (
    Figure("{prompt} tokens read and {new} generated, 134m", "decoding", OURS, (BF16, F32)),
    Figure("loading 1.1b into NF4", "loading", "ours", LOADERS, Goal("8x", ratio=8)),
    Figure("peak of loading 1.1b", "loading", "ours", LOADERS, key="peak"),
    Figure("instructions, 8m, batches in any order", INSTRUCTIONS, "ours, 8 x 2", PADDED, Goal("4x", ratio=4)),
    Figure("instructions, 8m, batches of like lengths", INSTRUCTIONS, "ours, 8 x 2", BY_LENGTH),
    Figure("peak of the same", INSTRUCTIONS, "ours, 8 x 2", BY_LENGTH, key="peak"),
)
MIXED = ("PEFT + bitsandbytes, f32, one batch", "PEFT, f32 base, one batch")
MANY = (
    Figure("{batch} rows over {served} adapters, {new} tokens each, 26m", "adapters_serving", "ours, one batch", MIXED),
    Figure("the same beside a batch for each adapter", "adapters_serving", "ours, one batch", ("ours, 16 batches",)),
    Figure("{trained} adapters trained at once, 26m", "adapters_training", "ours, 8 at once", ("ours, 8 runs",)),
    Figure("peak of the same", "adapters_training", "ours, 8 at once", ("ours, 8 runs",), key="peak"),
)
NEVER_SLOWER = Goal("never slower", ratio=1)
ONE_ROW = Goal("1.3x at 80 % of reading", ratio=1.3, share=0.8)
# beside the dense layer alone, by rows
OF_DENSE = {256: Goal("0.9 of its speed", ratio=0.9), 1024: Goal("0.96 of its speed", ratio=0.96)}


def linears() -> tuple[Figure, ...]:
    """One adapted layer, beside bitsandbytes' and, in training, beside the dense layer alone."""
    made = []
    for shape in ("2048x2048", "5632x2048"):
        for one_way in ("forward", "forward + backward"):
            for rows in (1, 16, 256, 1024):
                goal = {1: ONE_ROW, 16: NEVER_SLOWER}.get(rows, Goal()) if one_way == "forward" else Goal()
                where = {"shape": shape, "rows": rows, "pass": one_way}
                name = f"LoRA on {shape}, {rows} rows, {one_way}"
                made.append(Figure(name, "linear", OURS, (BF16, F32), goal, where=where))
                if rows in OF_DENSE and one_way != "forward":
                    made.append(
                        Figure(f"{name}, beside the dense layer", "linear", OURS, DENSE, OF_DENSE[rows], where=where)
                    )
    return tuple(made)


def kernel_goal(name: str, shape: str, peer: str) -> Goal:
    """What was aimed at for a kernel's row."""
    if name.startswith("quantize") and shape == "4096x4096":
        return Goal("40x", ratio=40)
    if name == "dequantize nf4 to bfloat16, nested scales" and peer == "dequantize_4bit":
        times = {"4096x4096": 8, "5632x2048": 2}.get(shape)
        return Goal(f"{times}x", ratio=times) if times else Goal()
    if name == "linear forward bfloat16, 1 rows" and peer == "matmul_4bit":
        # the share is bench_linear's, where no cache holds the weights
        return Goal("1.3x", ratio=1.3)
    if name in ("linear forward bfloat16, 4 rows", "linear forward bfloat16, 16 rows"):
        return NEVER_SLOWER
    return Goal()


FIGURES = (*linears(), *STEPS, *OTHERS, *MANY)
