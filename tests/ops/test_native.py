"""The extension beside torch: one OpenMP runtime, checked arguments, and the switches that turn it off."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from lorasmith import ops
from lorasmith.formats import formats
from lorasmith.ops import native

NF4 = formats["nf4"].codebook("cpu")


def run(code, **environment):
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def extension():
    if native.extension() is None:
        pytest.skip(f"no extension: {native.absence()}")
    return native.extension()


def test_the_process_holds_one_openmp_runtime(extension):
    if sys.platform != "linux":
        pytest.skip("reads /proc/self/maps")
    code = """
from pathlib import Path
import torch
from lorasmith import ops
from lorasmith.formats import formats
ops.quantize_blockwise(torch.ones(1 << 18), formats["nf4"].codebook("cpu"), 64)
lines = Path("/proc/self/maps").read_text().splitlines()
print(len({line.split()[-1] for line in lines if "libgomp" in line or "libomp" in line or "libiomp" in line}))
"""
    assert run(code) == "1"


def test_reference_kernels_can_be_asked_for():
    code = """
from lorasmith import ops
print({s.active + ' ' + s.why for s in ops.kernel_status() if 'made' not in s.why}, ops.triton_status(), sep="\\n")
"""
    kernels, triton = run(code, LORASMITH_KERNELS="reference", TRITON_INTERPRET="0").splitlines()
    assert kernels == "{'reference LORASMITH_KERNELS=reference'}"
    assert triton.endswith(", serves no device: LORASMITH_KERNELS=reference") or find_spec("triton") is None


def test_a_level_that_is_not_there_is_refused_by_name(extension, monkeypatch):
    monkeypatch.setenv("LORASMITH_CPU_LEVEL", "avx")
    native.level.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"LORASMITH_CPU_LEVEL=avx cannot be used here; choose one of: portable"):
            ops.quantize_blockwise(torch.ones(64), NF4, 64)
    finally:
        native.level.cache_clear()


def test_every_op_has_a_status_with_a_reason():
    statuses = [status for status in ops.kernel_status() if status.device == "cpu"]
    assert {"quantize_blockwise", "dequantize_blockwise", "blockwise_linear", "rowwise_linear"} <= {
        s.op for s in statuses
    }
    assert all(status.why for status in statuses)


def arrays(n=128, blocks=2):
    return {
        "x": torch.ones(n),
        "midpoints": torch.zeros(15),
        "order": torch.zeros(16, dtype=torch.uint8),
        "packed": torch.zeros(n // 2, dtype=torch.uint8),
        "scales": torch.zeros(blocks),
    }


@pytest.mark.parametrize("name", ["midpoints", "order", "packed", "scales"])
def test_an_array_of_another_size_is_refused_by_the_extension(extension, name):
    given = arrays()
    given[name] = given[name][1:].clone()
    with pytest.raises(ValueError, match=name):
        extension.quantize_4bit(**given, blocksize=64, threads=1, level="portable")


@pytest.mark.parametrize("change", [lambda a: a.double(), lambda a: a.repeat_interleave(2)[::2]])
def test_an_output_is_never_converted_silently(extension, change):
    given = arrays()
    given["scales"] = change(given["scales"])
    with pytest.raises(TypeError):
        extension.quantize_4bit(**given, blocksize=64, threads=1, level="portable")


STATUS = """
from lorasmith import ops
served = {s.op: f"{s.active} ({s.why})" for s in ops.kernel_status() if s.device == "cpu"}
print(served["rms_norm"], ops.triton_status(), sep="\\n")
"""


def test_triton_is_named_where_it_serves():
    triton = pytest.importorskip("triton")
    norm, status = run(STATUS, LORASMITH_KERNELS="triton", TRITON_INTERPRET="1").splitlines()
    assert norm == f"triton (triton {triton.__version__} in its interpreter)"
    assert status == f"{triton.__version__} in its interpreter, serves cpu"


@pytest.mark.parametrize(
    "environment, why",
    [
        ({"LORASMITH_KERNELS": "", "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}, "there is no CUDA GPU"),
        (
            {"LORASMITH_KERNELS": "", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
            "there is no CUDA GPU, and the interpreter serves the CPU only with LORASMITH_KERNELS=triton",
        ),
    ],
)
def test_where_triton_serves_nothing_its_status_says_why(environment, why):
    pytest.importorskip("triton")
    assert run(STATUS, **environment).splitlines()[-1].endswith(f", serves no device: {why}")
