"""Compiles Triton's kernels for real GPUs on a machine without one, down to their machine code; nothing is run.

    TRITON_INTERPRET=0 python tests/gpu_compiler.py [--all-tiles] [90 ...]

Calls each sample with CPU tensors, and every launch inside it is compiled instead. Triton's interpreter accepts much
that its compiler does not, so the tests run this beside it. Of the tiles that a kernel chooses among the first is
compiled, with --all-tiles each, with the shared memory that it takes.
"""

import importlib
import re
import subprocess
import sys
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from lorasmith.ops import choice

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


def resources(kernel: Any) -> str:
    """The bytes of shared memory, and the registers and bytes of stack (spills) of a thread."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (re.search(rf"{name}:(\d+)", usage) for name in ("REG", "STACK"))
    assert registers and stack, usage
    return f"shared {kernel.metadata.shared}, registers {registers[1]}, stack {stack[1]}"


def main(capabilities: list[int], all_tiles: bool) -> None:
    compiled: list[str] = []
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        tile = {name: kwargs[name] for name in ("ROWS", "OUTS", "DEPTH", "num_warps", "num_stages") if name in kwargs}
        compiled.append(f"\n  {self.__name__} {tile}: {resources(kernel)}" if all_tiles else self.__name__)
        assert kernel.asm["cubin"]
        return kernel

    def timed(call: Any) -> float:
        call()
        return 1.0

    JITFunction.run = compile_only
    choice.seconds = timed
    if not all_tiles:
        Autotuner.prune_configs = lambda self, kwargs: self.configs[:1]
    # what was compiled before counts for nothing
    Autotuner.check_disk_cache = lambda self, key, configs, benchmark: benchmark()
    samples = importlib.import_module(SAMPLES).SAMPLES
    for capability in capabilities:
        driver.set_active(Absent(capability))
        for name, sample in samples.items():
            compiled.clear()
            sample()
            print(f"sm_{capability} {name}: {', '.join(dict.fromkeys(compiled)) or 'NOTHING'}", flush=True)


if __name__ == "__main__":
    asked = sys.argv[1:]
    main([int(capability) for capability in asked if capability != "--all-tiles"] or [90], "--all-tiles" in asked)
