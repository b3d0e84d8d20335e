"""Filling rows of a fixed length with several examples."""

from collections.abc import Sequence

import numpy as np

# Examples packed together at a time: enough choice to fill packs to a few per cent, few enough to keep the shuffle.
WINDOW = 1024


def pack(lengths: Sequence[int], order: Sequence[int], max_length: int) -> list[list[int]]:
    """Packs of example indices whose lengths sum to at most max_length, every index of order in exactly one.

    First-fit decreasing inside successive windows of order; examples of equal length keep their order.
    """
    packs: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        packs.extend(_first_fit_decreasing(lengths, order[start : start + WINDOW], max_length))
    return packs


def _first_fit_decreasing(lengths: Sequence[int], window: Sequence[int], max_length: int) -> list[list[int]]:
    room = np.full(len(window), max_length)  # [packs], one an example at worst
    packs: list[list[int]] = [[] for _ in window]
    for index in sorted(window, key=lambda index: -lengths[index]):
        first = int(np.argmax(room >= lengths[index]))
        room[first] -= lengths[index]
        packs[first].append(int(index))
    return [pack for pack in packs if pack]
