"""Loading never holds the 16-bit model: memory grows by the quantized one and little more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHAPE = {"layers": 5, "hidden": 1024, "intermediate": 4096, "heads": 16, "vocabulary": 8000}
MIB = 2**20


def run(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("large")
    run("make_checkpoint.py", str(path), *(f"--{name}={value}" for name, value in SHAPE.items()))
    return path


@pytest.fixture(scope="module")
def rows(folder, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    development = ("--rounds", "1", "--accept-noise", "--only", "ours")
    run("bench_loading.py", "--folder", str(folder), "--results", str(results), *development)
    return {row["name"]: row for row in json.loads((results / "loading.json").read_text())["rows"]}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("way", "peak"), [("ours", "peak"), ("ours, transformers' hook", "anonymous")])
def test_a_model_is_loaded_in_the_memory_of_its_quantized_form(folder, rows, way, peak):
    dense = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    two_largest = 2 * 2 * SHAPE["vocabulary"] * SHAPE["hidden"]
    found = rows[way]
    # before loading: anonymous memory of about 260 MiB, resident memory as measured
    before = found["first"]["before"] if peak == "peak" else 260 * MIB
    assert found[peak] - before < found["model"] + two_largest + 80 * MIB
    # holding the 16-bit model beside the quantized one would exceed it
    assert two_largest + 80 * MIB < dense


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_both_ways_store_the_same_bytes(rows):
    sums = [(row["first"]["codes"], row["first"]["rest"]) for row in rows.values()]
    assert len(sums) == 2
    assert sums[0] == sums[1]
