"""The losses of several adapters' micro-batches from one forward pass of their base.

Axes: B batch, T tokens, D model width, V vocabulary, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lorasmith.attach import Adapters
from lorasmith.data.batch import Batch, join
from lorasmith.models.head import Head, next_token_targets, split_head
from lorasmith.ops.cross_entropy import IGNORED
from lorasmith.ops.token_loss.schema import Objective, token_losses
from lorasmith.training.loss import Loss, Task


@dataclass(frozen=True)
class Share:
    """One adapter's part of a micro-batch, and the loss that it trains with."""

    adapter: str
    batch: Batch
    objective: Objective

    @property
    def packed(self) -> bool:
        """Whether its examples stand behind one another in one row."""
        return self.batch.cu_seqlens is not None


class SharedLoss:
    """Each share's summed loss, as its adapter's own run has it, of one forward pass over all shares."""

    def __init__(self, book: Adapters, task: Task) -> None:
        self.book, self.model, self.task = book, book.model, task
        self.head = split_head(self.model) if task == "causal" else None
        self.padding = getattr(getattr(self.model, "config", None), "pad_token_id", None)

    def __call__(self, shares: Sequence[Share]) -> list[Tensor]:
        """Losses in the order of shares. The adapters must be named for the rows: `names`."""
        batch = join([share.batch for share in shares], self.padding)
        if self.head is None:
            more = {"use_cache": False} if self.task == "causal" else {}
            outputs = self.model(**batch.model_inputs(), **more).logits
        else:
            outputs = self.head.backbone(**batch.model_inputs(), use_cache=False).last_hidden_state
        parts = _parts(outputs, shares)
        return [self._loss(share, part) for share, part in zip(shares, parts, strict=True)]

    def alone(self, adapter: str, objective: Objective) -> Loss:
        """The loss of batches that are all one adapter's."""

        def loss(batch: Batch) -> Tensor:
            with self.book.by_rows([adapter]):
                return self([Share(adapter, batch, objective)])[0]

        return loss

    def _loss(self, share: Share, output: Tensor) -> Tensor:
        batch, objective = share.batch, share.objective
        if self.task == "classification":
            return token_losses(output, batch.labels, objective=objective).sum()
        targets = next_token_targets(batch.labels, batch.cu_seqlens)
        if self.head is not None:
            return self._served(share.adapter).nll(output, targets, objective)[0]
        kept = targets != IGNORED
        return token_losses(output[kept], targets[kept], objective=objective).sum()

    def _served(self, adapter: str) -> Head:
        """The head with one adapter; it sees tokens without their rows, and again so in a backward."""
        assert self.head is not None
        plain = self.head.weight is not None
        return self.head if plain else replace(self.head, module=_Served(self.head.module, self.book, adapter))


class _Served(nn.Module):
    """A module of a model, all rows of which one adapter serves."""

    def __init__(self, module: nn.Module, book: Adapters, adapter: str) -> None:
        super().__init__()
        self.module, self.book, self.adapter = module, book, adapter

    def forward(self, x: Tensor) -> Tensor:
        with self.book.by_rows([self.adapter]):
            out: Tensor = self.module(x)
            return out


def names(shares: Sequence[Share]) -> tuple[list[str], bool]:
    """The adapter of each row of the joined batch, or of each token of one row; and which of the two."""
    packed = shares[0].packed
    sizes = [share.batch.input_ids.shape[1 if packed else 0] for share in shares]
    return [share.adapter for share, size in zip(shares, sizes, strict=True) for _ in range(size)], packed


def _parts(outputs: Tensor, shares: Sequence[Share]) -> list[Tensor]:
    """Each share's own part of outputs [B, T, ...] (of classes: [B, C]), without what padding joined to it."""
    parts, start = [], 0
    for share in shares:
        rows, width = share.batch.input_ids.shape
        if share.packed:
            parts.append(outputs[:, start : start + width])
            start += width
        else:
            own = outputs[start : start + rows]
            parts.append(own[:, :width] if outputs.dim() == 3 else own)
            start += rows
    return parts
