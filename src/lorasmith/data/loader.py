"""An endless, deterministic stream of micro-batches that resumes exactly where it stopped."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np

from lorasmith.data.batch import Batch, concatenate, pad
from lorasmith.data.example import Example
from lorasmith.data.packing import pack
from lorasmith.errors import DataError

# Micro-batches whose examples are sorted by length together, so that rows of one batch need little padding.
GROUPED_BATCHES = 50

T = TypeVar("T")


class Loader:
    """Micro-batches of examples, epoch after epoch; the order of an epoch follows from seed and its number alone.

    packing fills packs of at most max_length tokens, batch_size packs to a micro-batch. padding_free puts the examples
    of a micro-batch into one row as segments; otherwise rows are padded on the right and grouped by length. Every
    example occurs exactly once an epoch, so the last micro-batch of one may be smaller.

    Raises DataError for no examples, for one longer than max_length, for packing without padding_free (its examples
    would see each other), and for classes without padding.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        *,
        seed: int,
        packing: bool,
        max_length: int,
        padding_free: bool,
        pad_token_id: int | None,
        shuffle: bool = True,
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.packing = packing
        self.max_length = max_length
        self.padding_free = padding_free
        self.pad_token_id = pad_token_id
        self.shuffle = shuffle
        self._lengths = [len(example) for example in examples]
        self._check()
        self._epoch = 0
        self._index = 0
        self._planned: tuple[int, list[list[int]]] | None = None
        self._fingerprint: str | None = None

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the last micro-batch came from."""
        return self._epoch

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches from the current position on, without end; the position is the loader's, not the iterator's."""
        while True:
            plan = self._plan_of(self._epoch)
            if self._index >= len(plan):
                self._epoch, self._index = self._epoch + 1, 0
                continue
            self._index += 1
            yield self._batch(plan[self._index - 1])

    def epoch_batches(self, epoch: int = 0) -> int:
        """Micro-batches of an epoch; with packing the number may differ a little from epoch to epoch."""
        return len(self._plan_of(epoch))

    def one_pass(self) -> Iterator[Batch]:
        """Every example once, in an order that never changes, for evaluation; leaves the position as it is."""
        for indices in self._plan(None):
            yield self._batch(indices)

    def state_dict(self) -> dict[str, int | str]:
        """The position: micro-batches handed out in the current epoch; and a fingerprint of what they come from."""
        return {"epoch": self._epoch, "index": self._index, "fingerprint": self._identity()}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go to a position that state_dict gave; DataError where examples or settings are not the same any more."""
        if state["fingerprint"] != self._identity():
            raise DataError(
                "the checkpoint was made with other data, batch size, packing or data seed, so the run cannot be "
                "resumed exactly; restore them, or start a new run"
            )
        self._epoch, self._index = int(state["epoch"]), int(state["index"])

    def _check(self) -> None:
        if not self.examples:
            raise DataError("there are no examples to make batches of; check the data files and max_length")
        if self.batch_size < 1:
            raise DataError(f"batch_size={self.batch_size} must be at least 1")
        if self.packing and not self.padding_free:
            raise DataError("packing needs attention that stays inside each example; set packing: false for this model")
        if self.padding_free and any(isinstance(example.labels, int) for example in self.examples):
            raise DataError("classification examples are padded, not packed; set packing: false")
        if min(self._lengths) < 1:
            raise DataError("an example has no tokens; remove it")
        longest = max(self._lengths)
        if longest > self.max_length:
            raise DataError(f"an example has {longest} tokens, more than max_length={self.max_length}; encode it again")

    def _plan_of(self, epoch: int) -> list[list[int]]:
        if self._planned is not None and self._planned[0] == epoch:
            return self._planned[1]
        random = np.random.default_rng([self.seed % 2**63, epoch]) if self.shuffle else None
        plan = self._plan(random)
        if epoch == self._epoch:
            self._planned = (epoch, plan)
        return plan

    def _plan(self, random: np.random.Generator | None) -> list[list[int]]:
        """Micro-batches as lists of example indices, every index in one; without random in a fixed order."""
        order = list(range(len(self.examples))) if random is None else random.permutation(len(self.examples)).tolist()
        if self.packing:
            packs = _shuffled(pack(self._lengths, order, self.max_length), random)
            return [[index for one in group for index in one] for group in _chunks(packs, self.batch_size)]
        if self.padding_free:
            return _chunks(order, self.batch_size)
        return _shuffled(self._grouped_by_length(order), random)

    def _grouped_by_length(self, order: list[int]) -> list[list[int]]:
        groups = _chunks(order, self.batch_size * GROUPED_BATCHES)
        in_order = [index for group in groups for index in sorted(group, key=lambda index: -self._lengths[index])]
        return _chunks(in_order, self.batch_size)

    def _batch(self, indices: list[int]) -> Batch:
        examples = [self.examples[index] for index in indices]
        return concatenate(examples) if self.padding_free else pad(examples, self.pad_token_id)

    def _identity(self) -> str:
        if self._fingerprint is None:
            settings = (self.batch_size, self.seed, self.packing, self.max_length, self.padding_free, self.shuffle)
            state = blake2b(repr(settings).encode(), digest_size=16)
            for example in self.examples:
                state.update(example.digest())
            self._fingerprint = state.hexdigest()
        return self._fingerprint


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _shuffled(items: list[T], random: np.random.Generator | None) -> list[T]:
    return items if random is None else [items[index] for index in random.permutation(len(items))]
