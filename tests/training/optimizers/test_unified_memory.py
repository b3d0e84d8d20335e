"""The calls that unified memory makes of the CUDA driver, on a stand-in with host memory; no GPU has run it."""

import contextlib
import ctypes
import gc
import types

import pytest
import torch

from lorasmith.errors import DeviceError, RunError
from lorasmith.training.optimizers import unified_memory
from lorasmith.training.optimizers.unified_memory import UnifiedMemory

OUT_OF_MEMORY = 2
STREAM = 0x5EED


class Function:
    """A driver's function, called through C: what it is given is converted by argtypes as for the driver's own."""

    def __init__(self, name, library):
        self.name, self.library = name, library
        self.argtypes = self.restype = None

    def __call__(self, *given):
        compiled = ctypes.CFUNCTYPE(self.restype, *self.argtypes)(lambda *seen: self.library.answer(self.name, *seen))
        return compiled(*given)


class Library:
    """As much of libcuda as is called."""

    def __init__(self, concurrent=1, failing=""):
        self.concurrent, self.failing = concurrent, failing
        self.calls, self.held = [], {}

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        self.__dict__[name] = Function(name, self)
        return self.__dict__[name]

    def answer(self, name, first, *rest):
        if name == "cuGetErrorName":
            assert first == OUT_OF_MEMORY
            rest[0].contents.value = b"CUDA_ERROR_OUT_OF_MEMORY"
            return 0
        self.calls.append((name, first if isinstance(first, int) else "out", *rest))
        if name == self.failing:
            return OUT_OF_MEMORY
        if name == "cuDeviceGetAttribute":
            first.contents.value = self.concurrent
        if name == "cuMemAllocManaged":
            block = (ctypes.c_uint8 * rest[0])()
            first.contents.value = ctypes.addressof(block)
            self.held[ctypes.addressof(block)] = block
        if name == "cuMemFree_v2":
            del self.held[first]
        return 0


@pytest.fixture
def driver(monkeypatch):
    """Puts a library in the driver's place, and host memory behind the tensors."""

    def start(**changes):
        library = Library(**changes)
        monkeypatch.setattr(unified_memory.ctypes, "CDLL", lambda name: library)
        return library

    def over(span, device):
        described = span.__cuda_array_interface__
        assert device == torch.device("cuda", 1)
        assert described["typestr"] == "|u1" and described["strides"] is None and not described["data"][1]
        block = (ctypes.c_uint8 * described["shape"][0]).from_address(described["data"][0])
        # as torch does with what it takes over
        block.span = span
        return torch.frombuffer(block, dtype=torch.uint8)

    monkeypatch.setattr(unified_memory, "as_tensor", over)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: types.SimpleNamespace(cuda_stream=STREAM))
    return start


def test_memory_is_managed_mapped_for_its_gpu_and_freed_with_its_last_tensor(driver):
    library = driver()
    memory = UnifiedMemory(torch.device("cuda", 1))
    whole = memory.allocate(4096)
    address = whole.data_ptr()
    part = whole[256:512].view(torch.float32)
    part.fill_(1.0)
    memory.prefetch(address + 256, 1024)
    assert address > 2**32
    assert library.calls == [
        ("cuDeviceGetAttribute", "out", unified_memory.CONCURRENT_MANAGED_ACCESS, 1),
        ("cuMemAllocManaged", "out", 4096, unified_memory.ATTACH_GLOBAL),
        ("cuMemAdvise", address, 4096, unified_memory.ACCESSED_BY, 1),
        ("cuMemPrefetchAsync", address + 256, 1024, 1, STREAM),
    ]
    del whole
    gc.collect()
    assert list(library.held) == [address]
    assert part.tolist() == [1.0] * 64
    del part
    gc.collect()
    assert not library.held
    assert library.calls[-1] == ("cuMemFree_v2", address)


def test_a_full_host_is_an_error_with_the_drivers_name_for_it(driver):
    driver(failing="cuMemAllocManaged")
    memory = UnifiedMemory(torch.device("cuda", 1))
    with pytest.raises(RunError, match=r"cuMemAllocManaged failed: CUDA_ERROR_OUT_OF_MEMORY; .* room on the host"):
        memory.allocate(1 << 20)


def test_a_driver_that_cannot_move_pages_while_kernels_run_is_refused(driver):
    driver(concurrent=0)
    with pytest.raises(DeviceError, match=r"cuda:1 does not move pages .* take training.optimizer: adamw or adamw8bit"):
        UnifiedMemory(torch.device("cuda", 1))


def test_without_a_driver_it_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(unified_memory, "LIBRARY", "libnone-such.so")
    with pytest.raises(DeviceError, match=r"need the CUDA driver: libnone-such.so"):
        unified_memory.Driver()
