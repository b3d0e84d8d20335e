"""A micro-batch of tensors, padded or concatenated. Axes: B rows, T tokens, S segments."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lorasmith.data.example import IGNORED, Example
from lorasmith.errors import DataError
from lorasmith.models.packed_attention import segment_mask


@dataclass(frozen=True)
class Batch:
    """What one forward pass gets.

    supervised counts the targets that enter the loss after the shift by one; for classification, the examples.
    """

    input_ids: Tensor  # int64 [B, T]; B == 1 in a concatenated batch
    labels: Tensor  # int64 [B, T], -100 where nothing is learned, not shifted; classification: class ids [B]
    attention_mask: Tensor | None  # int64 [B, T], 0 on padding; None in a concatenated batch
    position_ids: Tensor | None  # int64 [1, T], from 0 in every segment; None in a padded batch
    cu_seqlens: Tensor | None  # int32 [S + 1], on the CPU: where segments begin, and T; None in a padded batch
    supervised: int
    token_type_ids: Tensor | None = None  # int64 [B, T], 0 on padding; for pairs of texts, in a padded batch

    def model_inputs(self) -> dict[str, Tensor]:
        """What a transformers model's forward gets: token ids, segments of a packed batch or the mask, types."""
        arguments = {"input_ids": self.input_ids}
        if self.cu_seqlens is not None:
            arguments["attention_mask"] = segment_mask(self.cu_seqlens)
        elif self.attention_mask is not None:
            arguments["attention_mask"] = self.attention_mask
        if self.position_ids is not None:
            arguments["position_ids"] = self.position_ids
        if self.token_type_ids is not None:
            arguments["token_type_ids"] = self.token_type_ids
        return arguments

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on device; the bounds of segments stay on the CPU, where attention reads them."""
        return Batch(
            self.input_ids.to(device),
            self.labels.to(device),
            None if self.attention_mask is None else self.attention_mask.to(device),
            None if self.position_ids is None else self.position_ids.to(device),
            self.cu_seqlens,
            self.supervised,
            None if self.token_type_ids is None else self.token_type_ids.to(device),
        )


def pad(examples: Sequence[Example], pad_token_id: int | None) -> Batch:
    """Examples as rows, padded on the right to the longest; labels of padding are -100.

    Without a padding token 0 stands in its place: the attention mask alone says what is padding.
    """
    rows, width = len(examples), max(len(example) for example in examples)
    input_ids = np.full((rows, width), pad_token_id or 0, dtype=np.int64)
    mask = np.zeros((rows, width), dtype=np.int64)
    labels = np.full((rows, width), IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : len(example)] = example.input_ids
        mask[row, : len(example)] = 1
        if not isinstance(example.labels, int):
            labels[row, 1 : len(example)] = example.labels[1:]
    classes = [example.labels for example in examples if isinstance(example.labels, int)]
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.tensor(classes) if classes else torch.from_numpy(labels),
        attention_mask=torch.from_numpy(mask),
        position_ids=None,
        cu_seqlens=None,
        supervised=sum(example.supervised for example in examples),
        token_type_ids=_token_types(examples, width),
    )


def join(batches: Sequence[Batch], pad_token_id: int | None) -> Batch:
    """One batch of all: the rows of padded ones below each other, concatenated ones end to end.

    Raises DataError where some are padded and some concatenated, or rows have labels of different kinds.
    """
    if len({batch.cu_seqlens is None for batch in batches}) > 1 or len({batch.labels.dim() for batch in batches}) > 1:
        raise DataError("padded and packed batches, or classes and tokens, make no batch together; prepare all alike")
    supervised = sum(batch.supervised for batch in batches)
    if batches[0].cu_seqlens is not None:
        return _end_to_end(batches, supervised)
    width = max(batch.input_ids.shape[1] for batch in batches)
    classes = batches[0].labels.dim() == 1
    typed = any(batch.token_type_ids is not None for batch in batches)
    return Batch(
        input_ids=_below([batch.input_ids for batch in batches], width, pad_token_id or 0),
        labels=torch.cat([b.labels for b in batches])
        if classes
        else _below([b.labels for b in batches], width, IGNORED),
        attention_mask=_below([_mask(batch) for batch in batches], width, 0),
        position_ids=None,
        cu_seqlens=None,
        supervised=supervised,
        token_type_ids=_below([_types(batch) for batch in batches], width, 0) if typed else None,
    )


def _end_to_end(batches: Sequence[Batch], supervised: int) -> Batch:
    bounds, start = [torch.zeros(1, dtype=torch.int32)], 0
    for batch in batches:
        assert batch.cu_seqlens is not None
        bounds.append(batch.cu_seqlens[1:] + start)
        start += batch.input_ids.shape[1]
    positions = [batch.position_ids for batch in batches if batch.position_ids is not None]
    return Batch(
        input_ids=torch.cat([batch.input_ids for batch in batches], 1),
        labels=torch.cat([batch.labels for batch in batches], 1),
        attention_mask=None,
        position_ids=torch.cat(positions, 1),
        cu_seqlens=torch.cat(bounds),
        supervised=supervised,
    )


def _below(rows: Sequence[Tensor], width: int, value: int) -> Tensor:
    return torch.cat([functional.pad(tensor, (0, width - tensor.shape[1]), value=value) for tensor in rows])


def _mask(batch: Batch) -> Tensor:
    return torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask


def _types(batch: Batch) -> Tensor:
    return torch.zeros_like(batch.input_ids) if batch.token_type_ids is None else batch.token_type_ids


def _token_types(examples: Sequence[Example], width: int) -> Tensor | None:
    """[B, T] for pairs of texts, 0 on padding and for examples that state none."""
    if all(example.token_type_ids is None for example in examples):
        return None
    types = np.zeros((len(examples), width), dtype=np.int64)
    for row, example in enumerate(examples):
        if example.token_type_ids is not None:
            types[row, : len(example)] = example.token_type_ids
    return torch.from_numpy(types)


def concatenate(examples: Sequence[Example]) -> Batch:
    """Examples one after the other in a single row, each a segment of its own.

    The first label of every segment is -100: after the shift it would be predicted from the segment before.
    """
    lengths = [len(example) for example in examples]
    labels = [np.asarray(example.labels, dtype=np.int64).copy() for example in examples]
    for segment in labels:
        segment[0] = IGNORED
    input_ids = np.concatenate([np.asarray(example.input_ids, dtype=np.int64) for example in examples])
    positions = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    bounds = np.cumsum([0, *lengths], dtype=np.int32)
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        labels=torch.from_numpy(np.concatenate(labels))[None],
        attention_mask=None,
        position_ids=torch.from_numpy(positions)[None],
        cu_seqlens=torch.from_numpy(bounds),
        supervised=sum(example.supervised for example in examples),
    )
