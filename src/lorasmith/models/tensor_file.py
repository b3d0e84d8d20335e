"""Reading safetensors files tensor by tensor with plain reads.

A mapped file counts in a process's resident memory page by page as it is touched, so a loader that maps its shards
holds the whole 16-bit model; a plain read into a buffer that is freed does not. Layout of a file: 8 bytes length of
the header (little endian), the header in JSON, the data. Source: the safetensors format, version 0.4.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import ModelError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_LENGTH_BYTES = 8
# the format's own limit
_LONGEST_HEADER = 100_000_000
_AGAIN = "download it again, or copy it again from where it was saved"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file; indexing it reads it.

    It speaks the part of safetensors' slice interface that transformers' loader uses, so a dict of these can be
    given to it as a state dict. Raises ModelError, naming the tensor, for NaN or Inf and for a file that changed.
    """

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    reader: "Callable[[StoredTensor], Tensor] | None" = None
    """What reads it when it is indexed, where that is not a plain read into memory."""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return next(code for code, dtype in DTYPES.items() if dtype == self.dtype)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def as_bytes(self) -> "StoredTensor":
        """The same data seen as uint8 [bytes, 1]."""
        return replace(self, dtype=torch.uint8, shape=(self.nbytes, 1))

    def __getitem__(self, index: Any) -> Tensor:
        return (self.read() if self.reader is None else self.reader(self))[index]

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        buffer = torch.empty(self.nbytes, dtype=torch.uint8)
        with self.opened() as file:
            self.fill(buffer, file)
        tensor = buffer.view(self.dtype).reshape(self.shape)
        self.refuse_non_finite(tensor)
        return tensor

    def opened(self) -> FileIO:
        """The file, at this tensor's first byte."""
        file = self.path.open("rb", buffering=0)
        file.seek(self.offset)
        return file

    def fill(self, buffer: Tensor, file: FileIO) -> None:
        """Read the next bytes of file into buffer, uint8 on the CPU. Raises ModelError where the file ends before."""
        view = buffer.numpy().data
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise ModelError(f"{self.path} ended inside tensor {self.name}; {_AGAIN}")
            done += count

    def refuse_non_finite(self, tensor: Tensor) -> None:
        """Raise ModelError where tensor, which was read, holds NaN or Inf."""
        if not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or not tensor.numel():
            return
        # NaN passes through both; no temporary of the tensor's size
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelError(f"{self.path.name}: tensor {self.name} holds NaN or Inf; repair or re-download the model")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, unread.

    Raises ModelError, naming the file, where the header is no header or the sizes do not add up.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or length > _LONGEST_HEADER or start > size:
            raise ModelError(f"{path} is no safetensors file, or its start is damaged; {_AGAIN}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _stored(name, entry, path, start) for name, entry in entries.items()}
        ends = [start + entry["data_offsets"][1] for entry in entries.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path} has a damaged header ({error}); {_AGAIN}") from error
    expected = max(ends, default=start)
    if expected != size:
        kind = "truncated" if size < expected else "longer than its header says"
        raise ModelError(f"{path} is {kind}: {size:,} bytes instead of {expected:,}; {_AGAIN}")
    return tensors


def _stored(name: str, entry: dict[str, Any], path: Path, start: int) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name} has the unknown type {entry['dtype']}")
    begin, end = entry["data_offsets"]
    tensor = StoredTensor(name, path, DTYPES[entry["dtype"]], tuple(entry["shape"]), start + begin)
    if end - begin != tensor.nbytes or begin < 0:
        raise ValueError(f"tensor {name} claims {end - begin} bytes for the shape {list(tensor.shape)}")
    return tensor
