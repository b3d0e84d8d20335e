"""One low-rank update of a frozen linear layer, and the rows that it acts on.

Axes: N rows of the layer's input, n of them with the update, I in_features, O out_features, R rank.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorasmith.errors import FormatError
from lorasmith.ops.low_rank.schema import add_update, outer, project
from lorasmith.ops.segmented_low_rank import schema as segmented
from lorasmith.ops.segmented_low_rank.schema import Segments

Rows = slice | Tensor | None
"""Which rows: all, a run of them, or their numbers [n], each once."""


@dataclass(frozen=True)
class LowRank:
    """One update: A [R, I], B [O, R], the factor s, and the share of x's elements that are dropped before A.

    start is a frozen pair A0 [r, I], B0 [O, r]: what it does is taken off, so that the update is s (B A - B0 A0). rows
    confines it to some rows. gate [n, R] multiplies h, which lets rows choose among stacked factors; segments give each
    row its own of them, and a scale of its own beside s. gain [O] or [n, O] multiplies the sum of the frozen product
    and the update there, never the bias.
    """

    a: Tensor
    b: Tensor
    scaling: float
    dropout: float = 0.0
    gain: Tensor | None = None
    gate: Tensor | None = None
    rows: Rows = None
    start: tuple[Tensor, Tensor] | None = None
    segments: Segments | None = None

    @property
    def rank(self) -> int:
        """How many factors there are, a start's among them."""
        return self.a.shape[0] + (0 if self.start is None else self.start[0].shape[0])

    @property
    def stacked(self) -> "LowRank":
        """The same update of one pair of factors: [A; A0], [B, -B0]."""
        a, b = with_start(self.a, self.b, self.start)
        return replace(self, a=a, b=b, start=None)

    @property
    def plain(self) -> bool:
        """Whether it acts on all rows alike, with nothing dropped."""
        return self.rows is None and self.gate is None and self.segments is None and self.dropout == 0.0

    def check(self, x: Tensor) -> None:
        """Raise FormatError unless the update fits x [..., I]."""
        if self.a.shape[1] != x.shape[-1] or self.a.shape[0] != self.b.shape[1]:
            raise FormatError(
                f"an update of A {list(self.a.shape)} and B {list(self.b.shape)} does not fit x {list(x.shape)}"
            )
        if self.gain is not None and self.gain.shape[-1] != self.b.shape[0]:
            raise FormatError(
                f"a gain {list(self.gain.shape)} does not fit B {list(self.b.shape)}; it needs one an output"
            )
        if self.gate is not None and self.gate.shape[1] != self.a.shape[0]:
            raise FormatError(
                f"a gate {list(self.gate.shape)} does not fit A {list(self.a.shape)}; it needs one a rank"
            )
        if self.segments is not None and self.segments.total_rank != self.a.shape[0]:
            raise FormatError(f"segments of {self.segments.total_rank} ranks do not fit A {list(self.a.shape)}")
        if self.segments is not None and not (self.rows is self.gate is self.start is None):
            raise FormatError("segments say themselves which rows there are; leave out rows, gate and start")


def with_start(a: Tensor, b: Tensor, start: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """[A; A0] and [B, -B0], or A and B alone."""
    if start is None:
        return a, b
    return torch.cat([a, start[0].to(a.dtype)]), torch.cat([b, -start[1].to(b.dtype)], 1)


@dataclass(frozen=True)
class Course:
    """What an update has besides the tensors that may train."""

    scaling: float
    dropout: float
    gate: Tensor | None
    rows: Rows
    start: tuple[Tensor, Tensor] | None
    segments: Segments | None

    @classmethod
    def of(cls, update: LowRank) -> "Course":
        return cls(update.scaling, update.dropout, update.gate, update.rows, update.start, update.segments)

    @property
    def everywhere(self) -> bool:
        """Whether it adds one product h B^T to all rows."""
        return self.rows is None and self.segments is None

    def of_rows(self, values: Tensor) -> Tensor:
        """The update's rows [n, F] of values [N, F]: a view, or a copy where they are numbered."""
        return values if self.rows is None else values[self.rows]

    def project(self, x: Tensor, factor: Tensor) -> Tensor:
        """h [n, R] = s x factor^T of the update's rows x [n, F] and factor [R, F], gated."""
        if self.segments is not None:
            h_nR = segmented.project(x, factor, self.segments)
            return h_nR if self.scaling == 1.0 else h_nR.mul_(self.scaling)
        h_nR = project(x, factor, self.scaling)
        return h_nR if self.gate is None else h_nR.mul_(self.gate)

    def own(self, h: Tensor, rank: int) -> Tensor:
        """The part of h that comes of the rank of A itself, without its start."""
        return h if self.start is None else h[:, :rank].contiguous()

    def outer(self, h: Tensor, x: Tensor) -> Tensor:
        """h^T x [R, F] of the update's rows, which project gave h [n, R] of."""
        return outer(h, x) if self.segments is None else segmented.outer(h, x, self.segments)

    def product(self, h: Tensor, factor: Tensor, like: Tensor) -> Tensor:
        """h factor of the update's rows [n, F], in h's type; like are those rows of what it will change."""
        if self.segments is None:
            return h @ factor
        return segmented.add_(torch.zeros_like(like, dtype=h.dtype), h, factor, self.segments)

    def add(self, values: Tensor, h: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """values [N, F] + h [n, R] factor [R, F] on the update's rows, in values' place where it can be.

        The result is in dtype, if the update has all rows, else in the type of values.
        """
        if self.segments is not None:
            return segmented.add_(values, h, factor, self.segments)
        if self.rows is None:
            return add_update(values, h, factor, dtype)
        return self.put_(values, add_update(self.of_rows(values), h, factor, values.dtype))

    def put_(self, values: Tensor, rows: Tensor) -> Tensor:
        """values [N, F] with rows [n, F], which of_rows gave, changed."""
        if isinstance(self.rows, Tensor):
            values[self.rows] = rows
        return values

    def drop(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The update's rows of x [N, I] with some elements dropped and the rest enlarged, and which ones were kept."""
        x_nI = self.of_rows(x)
        return (x_nI, None) if self.dropout == 0.0 else torch.native_dropout(x_nI, self.dropout, True)

    def dropped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What drop gave of x, again."""
        x_nI = self.of_rows(x)
        return x_nI if mask is None else x_nI * mask * (1 / (1 - self.dropout))
