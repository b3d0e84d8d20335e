"""The error that an update of lower rank leaves, by rank, as a table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class ErrorByRank:
    """Squared norms, of one matrix or of several together: rest[k] is of what the nearest matrix of rank k leaves.

    By Eckart and Young that are the singular values behind the k-th; ranks beyond the last leave what the last does.
    """

    rest: tuple[float, ...] = (0.0,)

    @classmethod
    def of(cls, singular_values: Tensor, norm: float, complete: bool) -> Self:
        """The errors of a matrix of this Frobenius norm from its singular values, falling; complete: all of them."""
        squares = singular_values.cpu().double().square()
        behind = 0.0 if complete else max(0.0, norm**2 - float(squares.sum()))
        tails = squares.flip(0).cumsum(0).flip(0) + behind
        return cls((*tails.tolist(), behind))

    def __add__(self, other: "ErrorByRank") -> "ErrorByRank":
        count = max(len(self.rest), len(other.rest))
        return ErrorByRank(tuple(self._left(rank) + other._left(rank) for rank in range(count)))

    def relative(self, rank: int) -> float:
        """The size of what rank leaves, relative to the whole."""
        return (self._left(rank) / self.rest[0]) ** 0.5 if self.rest[0] else 0.0

    def _left(self, rank: int) -> float:
        return self.rest[min(rank, len(self.rest) - 1)]


class ErrorTable:
    """Lines of text: a name, and what some ranks leave in percent of the size of the change."""

    def __init__(self, rank: int, names: Iterable[str]) -> None:
        # the rank asked for, two below and two above
        self.ranks = sorted({max(1, rank // 4), max(1, rank // 2), rank, 2 * rank, 4 * rank})
        self.title = "left out at rank"
        self.width = max(len(name) for name in [self.title, *names])

    def head(self) -> str:
        """The first line."""
        return "  ".join([self.title.ljust(self.width), *(f"{rank:>8d}" for rank in self.ranks)])

    def line(self, name: str, errors: ErrorByRank) -> str:
        """The line of one matrix, or of all."""
        return "  ".join([name.ljust(self.width), *(f"{100 * errors.relative(rank):>6.2f} %" for rank in self.ranks)])
