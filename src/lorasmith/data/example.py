"""What the model is shown: the tokens of one example and what is learned from each."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

# The label that torch's cross entropy and transformers leave out of the loss.
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One sequence of tokens.

    labels has the length of input_ids and is not shifted (labels[t] is input_ids[t], or -100 where nothing is learned);
    or it is the id of a class. token_type_ids, for a pair of texts, says from which of the two each token is; None
    where the tokenizer makes no difference. Encoded examples hold arrays of 4-byte integers, a tenth of a list's
    memory.
    """

    input_ids: Sequence[int]
    labels: Sequence[int] | int
    token_type_ids: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """Targets that count in the loss: labels after the first token that are not -100; 1 for a class."""
        if isinstance(self.labels, int):
            return 1
        return int(np.count_nonzero(np.asarray(self.labels, dtype=np.int64)[1:] != IGNORED))

    def digest(self) -> bytes:
        """A hash of the content, equal for equal examples on every machine."""
        tokens = np.asarray(self.input_ids, dtype="<i4").tobytes()
        labels = np.asarray(self.labels, dtype="<i4").tobytes()
        length = len(self).to_bytes(8, "little")
        types = b"" if self.token_type_ids is None else np.asarray(self.token_type_ids, dtype="<i4").tobytes()
        return blake2b(length + tokens + labels + types, digest_size=16).digest()


def token_array(tokens: Iterable[int]) -> "array[int]":
    """Tokens as 4-byte integers."""
    return array("i", tokens)
