"""Trainer and TRL train our adapters as PEFT's: same losses, no second base, checkpoints that resume and reload."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from torch import tensor
from torch.testing import assert_close

SCRIPT = Path(__file__).with_name("trained_script.py")
pytestmark = pytest.mark.slow
STORAGES = ["dense", "nf4"]

if importlib.util.find_spec("trl") is None or importlib.util.find_spec("peft") is None:
    pytest.skip("trl and peft are needed", allow_module_level=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    command = [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("trained"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=["trainer", "sft", "dpo"])
def told(request, report):
    return report[request.param]


@pytest.fixture(params=STORAGES)
def ours(request, told):
    return told[f"lorasmith {request.param}"]


@pytest.mark.parametrize("storage", STORAGES)
def test_the_losses_are_those_of_peft(told, storage):
    ours, theirs = told[f"lorasmith {storage}"], told[f"peft {storage}"]
    assert (ours["kind"], theirs["kind"]) == ("lorasmith", "peft")
    assert len(ours["losses"]) == 4
    # four steps of Adam in float32
    assert_close(tensor(ours["losses"]), tensor(theirs["losses"]), atol=1e-5, rtol=0)
    assert_close(tensor(ours["trained"]), tensor(theirs["trained"]), atol=1e-5, rtol=0)


def test_training_changes_the_model_and_keeps_the_adapter_in_float32(ours):
    assert max(abs(a - b) for a, b in zip(ours["trained"], ours["before"])) > 1e-2
    assert ours["dtypes"] == ["torch.float32"]


def test_no_second_base_is_loaded(ours):
    assert ours["bases"] == 0


def test_a_checkpoint_reloads_with_the_trained_logits(ours):
    assert ours["reloaded"] == ours["trained"]


def test_resuming_repeats_the_losses_and_the_model(ours):
    assert ours["resumed"] == ours["losses"]
    assert ours["resumed_says"] == ours["trained"]


@pytest.mark.parametrize("storage", STORAGES)
def test_dpo_starts_where_policy_and_reference_agree(report, storage):
    # the loss of a policy that prefers nothing: minus log sigmoid(0)
    assert report["dpo"][f"lorasmith {storage}"]["losses"][0] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("storage", STORAGES)
def test_dpos_reference_adapter_stays_what_the_policy_was(report, storage):
    ours = report["dpo"][f"lorasmith {storage}"]
    assert ours["reference"] == ours["before"]


@pytest.mark.parametrize("storage", STORAGES)
def test_the_checkpoint_holds_the_files_that_peft_would_write(told, storage):
    assert told[f"lorasmith {storage}"]["files"] == told[f"peft {storage}"]["files"]


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_trl_wants_the_model_wrapped_before(report, task):
    assert "`peft_config` must be a `peft.PeftConfig` instance" in report[task]["config"]


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_trl_refuses_an_adapted_head_which_it_would_leave_untrained(report, task):
    assert "Applying a PEFT adapter to `lm_head` is not supported" in report[task]["head"]
