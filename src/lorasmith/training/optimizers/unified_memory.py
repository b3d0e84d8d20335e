"""CUDA unified memory: pages that move between GPU and host as they are needed.

Reached through the CUDA driver, which is wherever torch computes with CUDA, and whose functions keep their arguments
from version to version (those of the runtime changed with CUDA 13). Tested against a stand-in for the driver; untested
on a GPU.
"""

import ctypes
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from lorasmith.errors import DeviceError, RunError

LIBRARY = "libcuda.so.1"
# numbers of the CUDA driver API
ATTACH_GLOBAL = 1
ACCESSED_BY = 5
CONCURRENT_MANAGED_ACCESS = 89

_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuMemAllocManaged": (ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t, ctypes.c_uint),
    "cuMemAdvise": (ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_int),
    "cuMemPrefetchAsync": (ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p),
    "cuMemFree_v2": (ctypes.c_uint64,),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


class Memory(Protocol):
    """Memory that pages, as a placement uses it."""

    def allocate(self, size: int) -> Tensor:
        """uint8 [size], freed when nothing refers to it any more."""

    def prefetch(self, pointer: int, size: int) -> None:
        """Begin to bring a piece of what was allocated to the device; returns at once."""


class UnifiedMemory:
    """Unified memory of one GPU. Raises DeviceError where its driver cannot move pages while kernels run."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.driver = Driver()
        can = ctypes.c_int()
        with torch.cuda.device(self.device):
            self.driver.call("cuDeviceGetAttribute", ctypes.byref(can), CONCURRENT_MANAGED_ACCESS, self.device.index)
            # what is brought in lies beside what the current stream computes
            self._stream = torch.cuda.Stream(self.device)
        if not can.value:
            raise DeviceError(
                f"the driver of {self.device} does not move pages while kernels run (as under Windows and WSL), which "
                "paged optimizers need; take training.optimizer: adamw or adamw8bit"
            )

    def allocate(self, size: int) -> Tensor:
        """uint8 [size] on the device. Raises RunError where the driver has no memory left."""
        pointer = ctypes.c_uint64()
        with torch.cuda.device(self.device):
            self.driver.call("cuMemAllocManaged", ctypes.byref(pointer), size, ATTACH_GLOBAL)
            # what a kernel reads before it has been brought in comes over the bus, instead of page by page upon faults
            self.driver.call("cuMemAdvise", pointer, size, ACCESSED_BY, self.device.index)
        return as_tensor(_Span(pointer.value or 0, size, self.driver), self.device)

    def prefetch(self, pointer: int, size: int) -> None:
        """Begin to bring a piece to the device, beside the current stream; only speed depends on when it arrives."""
        with torch.cuda.device(self.device):
            self.driver.call("cuMemPrefetchAsync", pointer, size, self.device.index, self._stream.cuda_stream)


class Driver:
    """The functions of the CUDA driver that unified memory needs. Raises DeviceError where there is no driver."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise DeviceError(f"paged optimizers need the CUDA driver: {error}") from error

    def call(self, name: str, *arguments: Any) -> None:
        """Call one; RunError, with the driver's name for it, where it fails."""
        result = self._function(name)(*arguments)
        if result:
            said = ctypes.c_char_p()
            self._function("cuGetErrorName")(result, ctypes.byref(said))
            why = said.value.decode() if said.value else f"error {result}"
            raise RunError(
                f"{name} failed: {why}; the paged optimizer needs CUDA's unified memory, and room on the host"
            )

    def _function(self, name: str) -> Any:
        function = getattr(self._library, name)
        function.argtypes, function.restype = _ARGUMENTS[name], ctypes.c_int
        return function


class _Span:
    """A piece of unified memory as torch takes it over; freed with the last tensor that lies on it."""

    def __init__(self, pointer: int, size: int, driver: Driver) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
            "version": 2,
        }
        # when the process ends the driver frees everything, and torch may be gone
        weakref.finalize(self, driver.call, "cuMemFree_v2", pointer).atexit = False


def as_tensor(span: object, device: torch.device) -> Tensor:
    """The tensor over span, which it keeps alive."""
    return torch.as_tensor(span, device=device)
