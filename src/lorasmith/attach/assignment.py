"""Which adapter serves which rows of one batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorasmith.errors import AttachError
from lorasmith.ops import Segments

BASE = "__base__"
"""Instead of an adapter's name: the bare base, as in PEFT."""


class Assignment:
    """An adapter's name, or BASE, for each row of a batch; with per_token for each token of a batch of one row.

    repeats is how often generation may repeat each row, one copy behind the other (beams, returned sequences).
    """

    def __init__(self, names: Sequence[str], *, per_token: bool = False, repeats: int = 1) -> None:
        if isinstance(names, str) or not names:
            raise AttachError(f"adapter names {names!r}: give a list with the name of an adapter for each row")
        self.names = tuple(names)
        self.per_token = per_token
        self.repeats = repeats
        # in the order of their first rows
        self.present = tuple(dict.fromkeys(names))
        self._runs: dict[int, dict[str, slice | Tensor]] = {}
        self._numbers: dict[int, Tensor] = {}
        self._segments: dict[object, Segments] = {}

    @property
    def axis(self) -> int:
        """The axis of a layer's input that the names belong to."""
        return 1 if self.per_token else 0

    @property
    def only(self) -> str | None:
        """The one name of all rows, where it is one."""
        return self.present[0] if len(self.present) == 1 else None

    def check(self, x: Tensor) -> None:
        """Raise AttachError unless x, a layer's input, has the rows of the batch."""
        named = len(self.names)
        if self.per_token:
            fits = x.dim() >= 2 and x.shape[0] == 1 and x.shape[1] == named
        else:
            fits = x.dim() >= 1 and x.shape[0] in (named, named * self.repeats)
        if not fits:
            unit = "tokens" if self.per_token else "rows"
            raise AttachError(
                f"a layer got an input of {list(x.shape)} where adapters are named for {named} {unit}; layers that see "
                "rows in another shape (experts, a flattened batch) serve one adapter at a time"
            )

    def runs(self, count: int) -> dict[str, slice | Tensor]:
        """The rows of each name, a slice where they stand together, of count rows: each name's, repeated evenly."""
        if count not in self._runs:
            numbers = self.numbers(count)
            self._runs[count] = {name: _run((numbers == k).nonzero()[:, 0]) for k, name in enumerate(self.present)}
        return self._runs[count]

    def numbers(self, count: int) -> Tensor:
        """For each of count rows the number of its name among those present, int64 [count]."""
        if count not in self._numbers:
            places = {name: number for number, name in enumerate(self.present)}
            own = torch.tensor([places[name] for name in self.names])
            self._numbers[count] = own.repeat_interleave(count // len(self.names))
        return self._numbers[count]

    def segments(self, count: int, factors: Mapping[str, tuple[int, float]], device: torch.device) -> Segments:
        """Of count rows on device, with each name's rank and scale; layers that have the same share them."""
        each = tuple(factors.get(name, (0, 1.0)) for name in self.present)
        key = (count, each, device)
        if key not in self._segments:
            ranks, scales = zip(*each, strict=True)
            self._segments[key] = Segments.of(self.numbers(count), ranks, scales, device)
        return self._segments[key]


def _run(rows: Tensor) -> slice | Tensor:
    first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows
