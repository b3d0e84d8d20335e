"""Triton's kernels as a whole: compiled for a real GPU, and where they serve."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_samples
import lorasmith

TESTS = Path(__file__).parents[1]
PACKAGES = Path(lorasmith.__file__).parents[1]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), **environment}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=TESTS, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_kernel_compiles_to_machine_code_of_an_h200(tmp_path):
    done = run("gpu_compiler.py", "90", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"sm_90 {name}" for name in gpu_samples.SAMPLES]
    assert not [line for line in lines if "NOTHING" in line]


def test_triton_serves_the_cpu_only_where_both_variables_ask_for_it():
    code = "from lorasmith.ops import gpu; import torch; print(gpu.devices() or torch.cuda.is_available())"
    without = run("-c", code, LORASMITH_KERNELS="", TRITON_INTERPRET="1")
    assert without.stdout.strip() in ("False", "('cuda',)"), without.stderr
    asked = run("-c", code, LORASMITH_KERNELS="triton", TRITON_INTERPRET="1")
    assert asked.stdout.strip() == "('cpu',)", asked.stderr


def test_asking_for_triton_where_it_cannot_run_names_the_way_out():
    code = "import lorasmith.ops"
    done = run("-c", code, LORASMITH_KERNELS="triton", TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert "needs triton, and a CUDA GPU or TRITON_INTERPRET=1" in done.stderr
