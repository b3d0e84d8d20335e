"""Compiles Triton's kernels for real GPUs on a machine without one, down to their machine code; nothing is run.

    TRITON_INTERPRET=0 python tests/gpu_compiler.py [90 ...]

Calls each sample with CPU tensors, and every launch inside it is compiled instead. Triton's interpreter accepts much
that its compiler does not, so the tests run this beside it.
"""

import importlib
import sys
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SAMPLES = "gpu_samples"


class Absent:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        def benchmark(kernel_call: Any, quantiles: Any) -> list[float]:
            kernel_call()
            return [1.0] * len(quantiles)

        return benchmark


def main(capabilities: list[int]) -> None:
    compiled: list[str] = []
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(self.__name__)
        assert kernel.asm["cubin"]
        return kernel

    JITFunction.run = compile_only
    knobs.autotuning.cache = False
    samples = importlib.import_module(SAMPLES).SAMPLES
    for capability in capabilities:
        driver.set_active(Absent(capability))
        for name, sample in samples.items():
            compiled.clear()
            sample()
            print(f"sm_{capability} {name}: {', '.join(dict.fromkeys(compiled)) or 'NOTHING'}", flush=True)


if __name__ == "__main__":
    main([int(capability) for capability in sys.argv[1:]] or [90])
