"""CUDA's rules for recording are kept, in their order; torch.cuda itself is played by a log of its calls."""

import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from lorasmith.decoding.recorder import CudaGraphs, NotRecordable, ReadTensors

WAIT = "called a synchronizing CUDA operation (Triggered internally)"


class Cuda:
    """The part of torch.cuda that a recording calls, which only notes what happens."""

    def __init__(self):
        self.log, self.mode, self.modes, self.pools = [], 0, [], 0
        self.fails = False
        self.current = self.stream_named("main")
        restored = lambda state: self.log.append(f"the generator is {state} again")  # noqa: E731
        generator = SimpleNamespace(clone_state=lambda: "as it was", graphsafe_set_state=restored)
        self.default_generators = (None, generator)

    def current_device(self):
        return 1

    def stream_named(self, name):
        stream = SimpleNamespace(name=name)
        stream.wait_stream = lambda other: self.log.append(f"{name} waits for {other.name}")
        return stream

    def graph_pool_handle(self):
        self.pools += 1
        return f"pool {self.pools}"

    def Stream(self, device):
        return self.stream_named("side")

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    def current_stream(self):
        return self.current

    @contextmanager
    def device(self, device):
        yield

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        # as torch's: where the end fails, the stream stays
        self.current = stream
        self.log.append(f"capture into {pool} on {stream.name}, {capture_error_mode}")
        yield
        if self.fails:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        self.log.append("captured")
        self.current = self.stream_named("main")

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        # torch says so whenever it is set
        warnings.warn("Synchronization debug mode does not yet detect all synchronizing operations", stacklevel=1)
        self.mode = mode
        self.modes.append(mode)


@pytest.fixture
def cuda(monkeypatch):
    made = Cuda()
    names = (
        "graph_pool_handle", "Stream", "CUDAGraph", "current_stream", "device", "stream", "graph",
        "get_sync_debug_mode", "set_sync_debug_mode", "default_generators", "current_device",
    )  # fmt: skip
    for name in names:
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    return made


def steps(cuda, waiting=()):
    """A step that notes where it runs and waits for the GPU in the runs of these numbers; and its undoing."""
    runs = []

    def step():
        runs.append(None)
        cuda.log.append(f"step on {cuda.current.name}")
        if len(runs) in waiting:
            warnings.warn(WAIT, stacklevel=1)
        return "output"

    return step, lambda: cuda.log.append("again")


def test_a_step_is_warmed_up_beside_and_captured_there(cuda):
    replay = CudaGraphs(torch.device("cuda")).record(*steps(cuda))
    assert cuda.log == [
        "side waits for main",
        "step on side",
        "again",
        "step on side",
        "again",
        "main waits for side",
        "capture into pool 1 on side, thread_local",
        "step on side",
        "captured",
    ]
    assert replay() == "output" and cuda.log[-1] == "replay"
    assert cuda.current.name == "main"


def test_graphs_share_a_pool_as_long_as_one_of_them_lives(cuda):
    graphs = CudaGraphs(torch.device("cuda"))
    kept = [graphs.record(*steps(cuda)) for _ in range(2)]
    kept.clear()
    kept.append(graphs.record(*steps(cuda)))
    assert [line for line in cuda.log if "into" in line] == [
        f"capture into pool {number} on side, thread_local" for number in (1, 1, 2)
    ]


def test_a_wait_while_tuning_is_none_of_every_step(cuda):
    CudaGraphs(torch.device("cuda")).record(*steps(cuda, waiting=[1]))
    assert "captured" in cuda.log
    assert cuda.modes == ["warn", 0, "warn", 0]


def test_a_step_that_waits_for_the_gpu_is_not_captured(cuda):
    with pytest.raises(NotRecordable, match=r"wait for the GPU \(test_recorder.py:\d+\)"):
        CudaGraphs(torch.device("cuda")).record(*steps(cuda, waiting=[1, 2]))
    assert cuda.log[-2:] == ["again", "main waits for side"]
    assert cuda.mode == 0


def test_after_a_failed_capture_stream_and_generator_are_as_before_and_no_other_follows(cuda):
    graphs, cuda.fails = CudaGraphs(torch.device("cuda")), True
    with pytest.raises(NotRecordable, match=r"a capture failed .*not permitted when stream is capturing"):
        graphs.record(*steps(cuda))
    assert cuda.current.name == "main"
    assert cuda.log[-1] == "the generator is as it was again"
    cuda.log, cuda.fails = [], False
    with pytest.raises(NotRecordable, match="a capture failed"):
        graphs.record(*steps(cuda))
    assert cuda.log == []


def test_an_error_of_the_step_itself_is_the_callers(cuda):
    def step():
        raise ValueError("bad shape")

    with pytest.raises(ValueError, match="bad shape"):
        CudaGraphs(torch.device("cuda")).record(step, lambda: None)
    assert cuda.current.name == "main" and cuda.mode == 0


@pytest.mark.parametrize("inference", [False, True])
def test_what_was_read_and_not_made_is_held(inference):
    with torch.inference_mode(inference):
        read, written, made_before = torch.ones(3), torch.zeros(3), torch.ones(6)
        with ReadTensors() as reads:
            made = read * 2
            written.add_(made + made_before[::2])
            made.mul_(3)
    places = {tensor.untyped_storage().data_ptr() for tensor in reads.held}
    assert places == {tensor.untyped_storage().data_ptr() for tensor in (read, written, made_before)}


def test_sparse_tensors_are_held_too():
    sparse, dense = torch.eye(3).to_sparse(), torch.ones(3, 2)
    with torch.no_grad(), ReadTensors() as reads:
        sparse @ dense
    assert any(tensor is sparse for tensor in reads.held)
