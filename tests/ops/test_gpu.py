"""Triton's kernels as a whole: compiled for a real GPU, and where they serve."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpu_samples
import lorasmith
from lorasmith.errors import DeviceError
from lorasmith.ops import gpu

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


@pytest.mark.parametrize(
    "interpreter, choices, left", [("1", "", 1), ("0", "fixed", 1), ("0", "measured", 2), ("0", "", 2)]
)
def test_a_kernel_takes_its_first_tile_where_nothing_is_to_be_measured(interpreter, choices, left, monkeypatch):
    triton = pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", interpreter)
    monkeypatch.setenv("LORASMITH_CHOICES", choices)
    configs = [triton.Config({"TILE": tile}) for tile in (1, 2)]
    kernel = gpu.tuned(configs, ["x"])(triton.jit(test_triton_serves_the_cpu_only_where_both_variables_ask_for_it))
    assert [config.kwargs["TILE"] for config in kernel.configs] == [1, 2][:left]


@pytest.mark.slow
def test_every_op_passes_empty_batches_and_broadcast_gradients_through_the_dispatcher():
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    done = run("gpu_edges.py", LORASMITH_KERNELS="triton", TRITON_INTERPRET="1" if device == "cpu" else "0")
    assert done.stdout.strip() == f"served by {device}", done.stderr


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


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU of NVIDIA's and all that Triton needs; called with the name of one thing it loses that."""
    pytest.importorskip("triton")
    (tmp_path / "Python.h").touch()
    losses = {
        "nothing": lambda: None,
        "compiler": lambda: monkeypatch.setattr(shutil, "which", lambda name: None),
        "headers": lambda: (tmp_path / "Python.h").unlink(),
        "NVIDIA": lambda: monkeypatch.setattr(torch.version, "hip", "7.2"),
    }
    for name in ("CC", "CPATH", "C_INCLUDE_PATH", "LORASMITH_KERNELS", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sysconfig, "get_path", lambda *asked: str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    gpu.missing_tools.cache_clear()
    yield lambda what: losses[what]()
    gpu.missing_tools.cache_clear()


@pytest.mark.parametrize(
    "lost, said",
    [
        ("nothing", ""),
        ("compiler", "needs a C compiler; install gcc"),
        ("headers", "Python.h; install python3-dev"),
        ("NVIDIA", "untried on AMD's"),
    ],
)
def test_a_gpu_that_triton_cannot_launch_on_is_left_to_the_reference_and_told(machine, lost, said, monkeypatch):
    machine(lost)
    assert gpu.devices() == (() if said else ("cuda",))
    assert said in gpu.absence()
    # others' kernels run on AMD's GPUs
    assert gpu.launches() == (lost in ("nothing", "NVIDIA"))
    monkeypatch.setenv("LORASMITH_KERNELS", "triton")
    assert gpu.devices() == ("cuda",)


def test_a_gpu_that_is_too_old_for_the_kernels_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P40")
    there = SimpleNamespace(is_cuda=True, device=torch.device("cuda:77"))
    with pytest.raises(DeviceError, match=r"Tesla P40 has compute capability 6.1.* need 7.5; .*=reference"):
        gpu.current(there)


def test_tiles_are_timed_without_memory_of_their_own_and_not_at_all_while_a_graph_is_captured(monkeypatch):
    triton = pytest.importorskip("triton")

    def kernel():
        """Stands for a kernel."""

    kernel.arg_names = ["n"]
    for name in ("LORASMITH_CHOICES", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    configs = [triton.Config({"TILE": tile}) for tile in (1, 2)]
    tuner = gpu.tuned(configs, key=["n"])(kernel)
    tuner.nargs, times = {}, iter([3.0, 1.0])
    monkeypatch.setattr(gpu.choice, "seconds", lambda call: next(times))
    assert tuner.prune_configs({}) == configs
    assert tuner.do_bench(None, quantiles=(0.5, 0.2, 0.8)) == [3.0] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuner.prune_configs({}) == configs[:1]
    assert tuner.do_bench(None, quantiles=(0.5, 0.2, 0.8)) == [0.0] * 3
    assert next(times) == 1.0
