"""Tensors of a checkpoint on their way from the file to the device, read while the one before is worked on.

On a GPU a tensor goes in pieces through two pinned buffers: while one is copied on a stream of its own, the other is
filled from the file. The pieces land in memory on the device, where the tensor is quantized while a thread reads the
next. So loading takes about as long as reading, host memory holds two pieces, and the device two tensors beside the
model. On a CPU the same code runs with plain buffers and without streams, for tests.
"""

import threading
from collections.abc import Sequence
from io import FileIO
from types import TracebackType

import torch
from torch import Tensor

from lorasmith.models.tensor_file import StoredTensor

PIECE = 32 << 20
"""Bytes of one of the two buffers: long enough for full speed, short enough to begin copying early."""


class Staging:
    """Reads stored tensors into memory on a device; for one thread at a time."""

    def __init__(self, device: torch.device, piece: int = PIECE) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._buffers = [torch.empty(piece, dtype=torch.uint8, pin_memory=self._cuda) for _ in range(2)]
        # when the last copy out of each buffer is complete
        self._emptied: list[torch.cuda.Event | None] = [None, None]

    def read(self, stored: StoredTensor) -> "Arriving":
        """Read stored; on a GPU its last pieces may still be on their way. Raises ModelError as StoredTensor does."""
        with torch.cuda.stream(self._stream):
            target = torch.empty(stored.nbytes, dtype=torch.uint8, device=self.device)
            pieces = target.split(len(self._buffers[0])) if stored.nbytes else ()
            with stored.opened() as file:
                for number, part in enumerate(pieces):
                    self._pass_on(stored, file, part, number % 2)
            arrived = self._stream.record_event() if self._stream is not None else None
        return Arriving(stored, target.view(stored.dtype).reshape(stored.shape), arrived)

    def _pass_on(self, stored: StoredTensor, file: FileIO, part: Tensor, turn: int) -> None:
        emptied = self._emptied[turn]
        if emptied is not None:
            emptied.synchronize()
        buffer = self._buffers[turn][: len(part)]
        stored.fill(buffer, file)
        part.copy_(buffer, non_blocking=True)
        if self._stream is not None:
            self._emptied[turn] = self._stream.record_event()


class Arriving:
    """A tensor that is read, and perhaps not yet whole on its device."""

    def __init__(self, stored: StoredTensor, tensor: Tensor, arrived: "torch.cuda.Event | None") -> None:
        self.stored, self._tensor, self._arrived = stored, tensor, arrived

    def here(self) -> Tensor:
        """The tensor, for the current stream. Raises ModelError, naming it, for NaN or Inf."""
        if self._arrived is not None:
            current = torch.cuda.current_stream(self._tensor.device)
            current.wait_event(self._arrived)
            # it was allocated on the other stream, which must not reuse its memory before this one is done with it
            self._tensor.record_stream(current)
        self.stored.refuse_non_finite(self._tensor)
        return self._tensor


class ReadAhead:
    """Stored tensors by request, the next of an order read by a thread while the last one asked for is worked on.

    Requests in the order given find their tensor read or on its way. One out of order is read when it is asked for, and
    reading ahead goes on from there once two follow each other; names that nobody asks for are passed over so. At most
    one tensor waits. Use it in a with statement, which ends the thread.
    """

    def __init__(self, order: Sequence[StoredTensor], staging: Staging) -> None:
        self._order, self._staging = list(order), staging
        self._places = {stored.name: place for place, stored in enumerate(order)}
        self._state = threading.Condition()
        # one request at a time
        self._turn = threading.Lock()
        # the place that the thread reads or has read, and what came of it
        self._wanted: int | None = 0 if order else None
        self._found: tuple[int, Arriving | BaseException] | None = None
        self._last = -1
        self._over = False
        self._thread = threading.Thread(target=self._read_on, name="lorasmith-read-ahead", daemon=True)

    def __enter__(self) -> "ReadAhead":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._state:
            self._over, self._found = True, None
            self._state.notify_all()
        self._thread.join()

    def take(self, stored: StoredTensor) -> Tensor:
        """The tensor on the device; raises what reading it raised."""
        place = self._places[stored.name]
        with self._turn:
            return self._taken(place)

    def _taken(self, place: int) -> Tensor:
        with self._state:
            if self._wanted != place:
                self._ask(place)
            while self._found is None or self._found[0] != place:
                self._state.wait()
            found = self._found[1]
            follows, self._last = place == self._last + 1, place
            self._ask(place + 1 if follows and place + 1 < len(self._order) else None)
        if isinstance(found, BaseException):
            raise found
        return found.here()

    def _ask(self, place: int | None) -> None:
        self._wanted, self._found = place, None
        self._state.notify_all()

    def _read_on(self) -> None:
        """The thread: reads whatever is wanted, one at a time."""
        while True:
            with self._state:
                while not self._over and (self._wanted is None or self._found is not None):
                    self._state.wait()
                if self._over:
                    return
                place = self._wanted
            assert place is not None
            found = self._read(place)
            with self._state:
                # something else may be wanted by now
                if self._wanted == place and not self._over:
                    self._found = (place, found)
                    self._state.notify_all()
            # whoever asked has it; this thread must not keep it on the device while it reads the next
            del found

    def _read(self, place: int) -> Arriving | BaseException:
        try:
            return self._staging.read(self._order[place])
        # raised again where it is asked for
        except Exception as error:
            return error
