"""Recording a step of work so that it can be replayed without Python: the seam, and CUDA graphs behind it.

After PyTorch's "CUDA semantics", section "CUDA Graphs": work is warmed up on a side stream, so that lazy set-up, the
tuning of Triton and our own timing (ops/choice.py) are done before anything is captured; the capture runs on the same
stream and draws from a private pool, which graphs that never run at once may share; nothing may wait for the GPU. The
CUDA part has not run on a GPU.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorasmith.errors import reason

Step = Callable[[], Any]
# of the step before it is captured: the first tunes and compiles, the second shows what every later one does
_WARM_UPS = 2


class NotRecordable(Exception):
    """Why a step has to run as it always did."""


class Recorder(Protocol):
    """What records a step."""

    def record(self, step: Step, again: Callable[[], None]) -> Step:
        """What does step's work once more, on the memory that step read and wrote, and returns what step returned.

        again takes back what a run of step changed; it is called between runs, so that each begins alike. The tensors
        that are returned are overwritten by the next replay. Raises NotRecordable where step cannot be recorded.
        """


@dataclass(eq=False)
class _Replay:
    """A graph, the tensors that it writes its results into, and those that it reads by their addresses."""

    graph: torch.cuda.CUDAGraph
    output: Any
    read: list[Tensor]

    def __call__(self) -> Any:
        self.graph.replay()
        return self.output


class CudaGraphs:
    """Records steps as CUDA graphs, all in one pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None
        self._stream = torch.cuda.Stream(device)
        self._alive: weakref.WeakSet[_Replay] = weakref.WeakSet()
        self._broken: str | None = None

    def record(self, step: Step, again: Callable[[], None]) -> Step:
        """See Recorder."""
        # the allocator may still believe that the capture goes on, and refuse the pool
        if self._broken is not None:
            raise NotRecordable(self._broken)
        with torch.cuda.device(self.device):
            self._warm_up(step, again)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            drawing = generator.clone_state()
            try:
                replay = self._captured(step)
            except BaseException as error:
                # PyTorch leaves it capturing, and whoever draws numbers next would get an error
                generator.graphsafe_set_state(drawing)
                self._broken = f"a capture failed ({reason(error)})"
                if isinstance(error, RuntimeError):
                    raise NotRecordable(self._broken) from error
                raise
        self._alive.add(replay)
        return replay

    def _warm_up(self, step: Step, again: Callable[[], None]) -> None:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        waits: list[str] = []
        with torch.cuda.stream(self._stream):
            for number in range(_WARM_UPS):
                if number:
                    again()
                with _noted_waits() as waits:
                    step()
            again()
        current.wait_stream(self._stream)
        if waits:
            raise NotRecordable(f"its steps wait for the GPU ({', '.join(waits)})")

    def _captured(self, step: Step) -> _Replay:
        if not self._alive:
            # PyTorch lets no capture into a pool whose graphs are all gone
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph leaves its own stream current where the end of a capture fails, and the outer block puts that
        # right; other threads' calls are not ours to forbid
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ReadTensors() as reads,
        ):
            output = step()
        return _Replay(graph, output, reads.held)


class ReadTensors(TorchDispatchMode):
    """While the block runs, holds the tensors that operations read and did not make themselves.

    A module may keep what it worked out (Kept) and drop it when something else acts; a graph would go on reading there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[int, Tensor] = {}
        self._made: set[int] = set()

    @property
    def held(self) -> list[Tensor]:
        """One tensor of each storage."""
        return list(self._read.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs func, noting whose storage is whose."""
        for tensor in _tensors((args, kwargs)):
            if _storage(tensor) not in self._made:
                self._read.setdefault(_storage(tensor), tensor)
        output = func(*args, **(kwargs or {}))
        self._made |= {_storage(tensor) for tensor in _tensors(output) if _strided(tensor)} - self._read.keys()
        return output


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _strided(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided


def _storage(tensor: Tensor) -> int:
    # sparse ones have several, which live as long as they do
    return tensor.untyped_storage()._cdata if _strided(tensor) else id(tensor)


@contextmanager
def _noted_waits() -> Iterator[list[str]]:
    """Where in the block PyTorch made the CPU wait for the GPU, as file:line; filled at the end.

    By warnings, not errors: the mode holds for all threads, and an error would strike another one's work.
    """
    before, found = torch.cuda.get_sync_debug_mode(), list[str]()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits = [entry for entry in said if "called a synchronizing" in str(entry.message)]
    found += dict.fromkeys(f"{Path(entry.filename).name}:{entry.lineno}" for entry in waits)
