"""The longest sequence that trains on 24 GB: 8B shape, rank 32 on all linear layers, 8-bit Adam, checkpointing.

PyTorch may reserve 24e9 bytes (set_per_process_memory_fraction); a card sold as 24 GB has 25.8e9, so that 1.8e9 are
left to the driver. The memory plan, a line through two lengths, says what to try; tries then close in. Unsloth's
published 78,475 tokens are for Llama 3.1 8B on 24 GB at rank 32 (unsloth.ai/blog/llama3-3).
"""

import time
from collections.abc import Iterator
from typing import Any

import random_llama
import torch
from measuring import Place, peak, place, tell, told
from plan_peaks import predicted
from random_llama import LLAMA_8B, TINY
from training_runs import MadeUp, Missing, settings_of, take_steps

CAP, PUBLISHED = 24_000_000_000, 78_475
RANK, STEP_OF_LENGTH, SHORT, TRIES = 32, 256, 512, 4
BETWEEN = (8192, 16384)
# what a way needs to be worth beginning
SECONDS = 20.0
WAYS: dict[str, dict[str, Any]] = {
    "inputs of layers in host memory, step in the backward pass": {
        "offload_checkpoints": True,
        "optimizer": "adamw8bit",
        "step_in_backward": True,
        "clip": None,
    },
    "all on the device": {"optimizer": "adamw8bit"},
}


def ways() -> Iterator[tuple[str, dict[str, Any]]]:
    """The layers' inputs in host memory, where this version can; then on the device."""
    for name, settings in WAYS.items():
        try:
            settings_of(gradient_checkpointing=True, **settings)
        except Missing as reason:
            tell("longest on 24 GB", way=name, skipped=str(reason))
        else:
            yield name, {"gradient_checkpointing": True, **settings}


def planned(model: Any, cap: int, where: Place, settings: dict[str, Any]) -> int:
    """The length whose predicted peak is cap."""
    lengths = (16, 32) if where.tiny else BETWEEN
    low, high = (predicted(model, 1, length, where, settings).total for length in lengths)
    slope = (high - low) / (lengths[1] - lengths[0])
    return max(1, int(lengths[0] + (cap - low) / slope))


def fits(model: Any, length: int, where: Place, settings: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a step at length, with the optimizer's state of a short one before, stays under the cap.

    row gets memory and time.
    """
    batches = MadeUp(1, length, model.config.vocab_size, 2, where.device, first_length=min(length, SHORT))
    try:
        with peak(where.device) as found:
            done = take_steps(model, batches, **settings)
    except torch.OutOfMemoryError:
        row |= {"fits": False}
        return False
    row |= {"fits": True, **found, "seconds": done.seconds[-1], "tokens_per_second": length / done.seconds[-1]}
    return True


def next_length(low: int, high: int | None, guess: int) -> int:
    """What to try above low, which fits, and below high, which does not: the published one first, then the plan's."""
    if high is None:
        length = PUBLISHED + 1 if low < PUBLISHED else max(guess, int(low * 1.1))
    elif low < guess < high:
        length = guess
    else:
        length = (low + high) // 2
    return -(-length // STEP_OF_LENGTH) * STEP_OF_LENGTH


def time_for(length: int, before: dict[str, Any] | None, where: Place) -> bool:
    """Whether there is time for a try at length: attention's grows by the square of it."""
    return before is None or where.left > 1.3 * before["took"] * (length / before["length"]) ** 2


def search(model: Any, way: str, where: Place, settings: dict[str, Any], cap: int) -> None:
    """A row for each try, and one for the longest that fitted as soon as one does."""
    guess = planned(model, cap, where, settings)
    low, high, before = 0, None, None
    ends = {"way": way, "planned": guess, "cap": cap, "published": PUBLISHED}
    for _ in range(1 if where.tiny else TRIES):
        length = guess if where.tiny else next_length(low, high, guess)
        if length <= low or (high is not None and length >= high) or not time_for(length, before, where):
            break
        fitted, began = False, time.perf_counter()
        with told("longest on 24 GB, a try", way=way, length=length) as row:
            fitted = fits(model, length, where, settings, row)
        before = {"length": length, "took": time.perf_counter() - began}
        low, high = (length, high) if fitted else (low, length)
        if fitted:
            tell("longest on 24 GB", **ends, length=low, refused=high)
    if high is not None:
        tell("longest on 24 GB", **ends, length=low, refused=high)


def main() -> None:
    where = place(__doc__)
    shape, cap = (TINY, 600_000) if where.tiny else (LLAMA_8B, CAP)
    if where.on_gpu:
        total = torch.cuda.get_device_properties(where.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), where.device)
    model = random_llama.adapted(random_llama.ours(shape, where.device), 4 if where.tiny else RANK)
    for way, settings in ways():
        if settings.get("offload_checkpoints") and not where.on_gpu:
            tell("longest on 24 GB", way=way, skipped="a CPU has no other memory")
            continue
        if where.left < SECONDS:
            tell("longest on 24 GB", way=way, skipped="no time left")
            continue
        search(model, way, where, settings, cap)


if __name__ == "__main__":
    main()
