"""The example of two layers, run as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "two_layers.py"


@pytest.fixture(scope="module")
def printed():
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_the_loss_falls_to_a_tenth(printed):
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert losses[-1] < losses[0] / 10


def test_merging_changes_nothing_but_the_rounding(printed):
    # two orders of f32 sums of a few units each
    difference = re.search(r"merged - adapted: at most (\S+)", printed)
    assert float(difference[1]) < 1e-5


def test_only_the_factors_train(printed):
    # r (in + out) of each layer, beside 16 x 64 + 64 and 64 x 1 + 1
    assert f"{4 * (16 + 64) + 4 * (64 + 1)} of 1,733 parameters train" in printed


def test_print_shows_each_layer_with_its_base_and_its_adapter_and_after_merging_neither(printed):
    before, _, after = printed.partition("merged - adapted")[0].rpartition("TwoLayers(")
    for name in ("hidden", "out"):
        assert f"({name}): Adapted(" in before
        assert f"({name}): Linear(" in after
    assert before.count("(base_layer): Linear(") == 2
    assert before.count("(lora_A)") == before.count("(lora_B)") == 2
    assert "lora" not in after
